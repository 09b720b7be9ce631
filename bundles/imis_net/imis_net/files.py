"""Files appear whole or not at all."""

from __future__ import annotations

import os
import threading
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


def _replace(path: Path, content: bytes, is_durable: bool) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        draft.write_bytes(content)
        if is_durable:  # before the rename, which may reach the disk first
            sync(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
