"""The form field ``params`` of MONAI Label's requests."""

from __future__ import annotations

import json
from typing import Any

from fastapi import HTTPException


def json_object(text: str) -> dict[str, Any]:
    """
    Raises:
        HTTPException: 400 for anything but a JSON object.
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"params: expected a JSON object, got {text[:60]!r}: {error}") from error
    if not isinstance(value, dict):
        raise HTTPException(400, f"params: expected a JSON object, got {text[:60]!r}")
    return value
