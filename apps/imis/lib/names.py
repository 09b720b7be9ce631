"""Names that a request joins to a folder's path."""

from __future__ import annotations

from fastapi import HTTPException

MAX_BYTES = 200
"""File systems take 255; an extension and a label's tag come after the name."""


def checked_name(key: str, value: str) -> str:
    """A name that stays inside the folder it is joined to.

    Raises:
        HTTPException: 422 for anything that walks: a separator, "..", a leading dot, a control character.
    """
    if len(value.encode(errors="replace")) > MAX_BYTES:
        raise HTTPException(422, f"{key}: expected a name of at most {MAX_BYTES} bytes")
    if not value.isprintable() or value.startswith(".") or ".." in value or any(c in value for c in "/\\"):
        raise HTTPException(422, f"{key}: expected a name without path, got {value[:80]!r}")
    return value
