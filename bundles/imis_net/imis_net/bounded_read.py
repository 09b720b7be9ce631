"""Read no more of a file than it can honestly hold: headers of unknown origin are checked before any allocation."""

from __future__ import annotations

import gzip
import io
import os
from math import prod
from pathlib import Path

import numpy as np

from imis_net.errors import ImageError

MAX_IMAGE_BYTES = 2**31
"""Decoded: 512 x 512 x 2000 voxels of 32 bits. Beyond it one request could take the server's memory."""

MAX_DEFLATE_RATIO = 1032
"""What deflate reaches on zeros: a gzip file that claims more is lying."""

_CHUNK_BYTES = 2**24


def open_maybe_gzip(path: Path) -> tuple[io.BufferedIOBase, int]:
    """The file's bytes, unpacked if it is gzip, and how many there can be at most."""
    size = os.path.getsize(path)
    file = path.open("rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.GzipFile(path), size * MAX_DEFLATE_RATIO
    file.seek(0)
    return file, size


def checked_num_bytes(shape: tuple[int, ...], item_bytes: int, available: int) -> int:
    """The bytes of an array that a header claims.

    Raises:
        ImageError: a side below 1, more than ``MAX_IMAGE_BYTES``, more than the ``available`` bytes.
    """
    if not shape or min(shape) < 1:
        raise ImageError(f"size {_text(shape)}: expected at least 1 along each axis")
    claimed = prod(shape) * item_bytes  # Python's integers: cannot overflow
    if claimed > MAX_IMAGE_BYTES:
        raise ImageError(f"size {_text(shape)} takes {claimed} bytes: at most {MAX_IMAGE_BYTES} are read")
    if claimed > available:
        raise ImageError(f"truncated: size {_text(shape)} takes {claimed} bytes, the file holds at most {available}")
    return claimed


def read_array(stream: io.BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """[shape], first index fastest, in native byte order; the caller has checked its size.

    Raises:
        ImageError: the stream ends before.
    """
    raw = np.empty(prod(shape) * dtype.itemsize, np.uint8)
    view, position = raw.data, 0
    while position < raw.size:
        count = stream.readinto(view[position : position + _CHUNK_BYTES])
        if not count:
            raise ImageError(f"truncated: size {_text(shape)} takes {raw.size} bytes, the file ends after {position}")
        position += count
    return raw.view(dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="), copy=False)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n)[:20] for n in shape)
