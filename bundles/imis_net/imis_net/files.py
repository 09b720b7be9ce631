"""Files appear whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, then rename: nobody reads half a file, and a failure leaves the old one.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    _replace(path, content, is_durable=False)


def write_durably(path: Path, content: bytes) -> None:
    """``write_atomically``, and on the disk before this returns: a power cut leaves the old file or the new one.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    _replace(path, content, is_durable=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside the target to write to; it becomes the target if the block ends well, and else goes."""
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _replace(path: Path, content: bytes, is_durable: bool) -> None:
    with replacing(path) as draft:
        draft.write_bytes(content)
        if is_durable:  # before the rename, which may reach the disk first
            sync(draft)
