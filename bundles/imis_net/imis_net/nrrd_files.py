"""NRRD: images with the voxels in the same file are read, masks are written with the image's own geometry.

Format: http://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import functools
import gzip
import io
import operator
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nrrd
import numpy as np

from imis_net.bounded_read import MAX_DEFLATE_RATIO, checked_num_bytes, read_array
from imis_net.errors import ImageError
from imis_net.files import write_atomically
from imis_net.volume import Volume

MAX_HEADER_BYTES = 2**20

_TYPES = {
    "uint8": ("uint8", "uint8_t", "uchar", "unsigned char"),
    "int8": ("int8", "int8_t", "signed char"),
    "uint16": ("uint16", "uint16_t", "ushort", "unsigned short", "unsigned short int"),
    "int16": ("int16", "int16_t", "short", "short int", "signed short", "signed short int"),
    "uint32": ("uint32", "uint32_t", "uint", "unsigned int"),
    "int32": ("int32", "int32_t", "int", "signed int"),
    "uint64": ("uint64", "uint64_t", "ulonglong", "unsigned long long", "unsigned long long int"),
    "int64": ("int64", "int64_t", "longlong", "long long", "long long int", "signed long long"),
    "float32": ("float",),
    "float64": ("double",),
}
_DTYPES = {alias: np.dtype(name) for name, aliases in _TYPES.items() for alias in aliases}

_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
_LPS_TO_RAS = (-1, -1, 1)
"""Of every other space too, which is how ITK reads a file that names none."""


_GZIP_HEAD = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
_DEFLATE_END = b"\x03\x00"
"""An empty last block."""


def read_nrrd(path: Path) -> Volume:
    """
    Raises:
        ImageError: voxels in another file (any file of this machine could be named), neither raw nor gzip, not one
            2D or 3D image of numbers or of RGB, too few bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_HEADER_BYTES))
        header = nrrd.read_header(head)
        _check_attached(header)
        dtype = _dtype(header)
        shape = tuple(int(n) for n in header["sizes"])
        is_gzip = header["encoding"] in ("gzip", "gz")
        held = size - head.tell()
        checked_num_bytes(shape, dtype.itemsize, held * MAX_DEFLATE_RATIO if is_gzip else held)
        file.seek(head.tell())
        array = read_array(gzip.GzipFile(fileobj=file) if is_gzip else file, shape, dtype)
    axes = _spatial_axes(shape, [str(kind).lower() for kind in header.get("kinds", [])])
    if len(axes) < len(shape):
        array = _as_colour(array, axes)
    return Volume(
        array[:, :, None] if len(axes) == 2 else array, _affine(header, axes), has_spacing=_has_spacing(header)
    )


def write_mask_nrrd(path: Path, mask: np.ndarray, volume: Volume, compress_level: int = 1) -> None:
    """A mask of ``volume`` with its geometry in LPS, as Slicer places it; OHIF takes the raw order, which is its grid.

    Args:
        mask: bool or uint8 [I, J, K].
        compress_level: gzip's, 1 to 9; 0 writes raw. Level 1 packs a mask 200 times in a few ms.

    Raises:
        ImageError: a mask of another size or type.
    """
    expected = volume.array.shape[:3]
    if mask.shape != expected or mask.dtype not in (np.uint8, np.bool_):
        raise ImageError(f"mask: expected uint8 {list(expected)}, got {mask.dtype} {list(mask.shape)}")
    voxels = mask.astype(np.uint8, copy=False).ravel(order="F")  # no copy of a mask that lies as its file does
    raw = _gzipped(voxels, expected[0] * expected[1], compress_level) if compress_level else voxels.tobytes()
    lps = np.diag([-1.0, -1.0, 1.0]) @ volume.affine[:3]
    lines = (
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, expected))}",
        f"space directions: {' '.join(_vector(lps[:, a]) for a in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {'gzip' if compress_level else 'raw'}",
        f"space origin: {_vector(lps[:, 3])}",
    )
    write_atomically(path, "\n".join(lines).encode() + b"\n\n" + raw)


def _gzipped(voxels: np.ndarray, chunk: int, level: int) -> bytes:
    """uint8 [N] as one gzip member. Slices without a voxel, which are most of a mask, are packed once for all."""
    blank = bytes(chunk)
    packed_blank, crc_after_blank = _deflated(blank, level), _crc_after(blank)
    pieces, crc = [_GZIP_HEAD], 0
    for start in range(0, len(voxels), chunk):
        part = voxels[start : start + chunk]
        if part.any():
            pieces.append(_deflated(part.data, level))
            crc = zlib.crc32(part.data, crc)
        else:
            pieces.append(packed_blank)
            crc = crc_after_blank(crc)
    return b"".join([*pieces, _DEFLATE_END, struct.pack("<II", crc, len(voxels) & 0xFFFFFFFF)])


def _crc_after(chunk: bytes) -> Callable[[int], int]:
    """``zlib.crc32(chunk, crc)`` of any ``crc`` from that of each of its 32 bits: CRC-32 is affine over them."""
    of_none = zlib.crc32(chunk)
    of_bit = [zlib.crc32(chunk, 1 << bit) ^ of_none for bit in range(32)]
    return lambda crc: functools.reduce(operator.xor, (of_bit[b] for b in range(32) if crc >> b & 1), of_none)


def _deflated(chunk: bytes | memoryview, level: int) -> bytes:
    """Whole blocks that look back at nothing before them, so that they may stand anywhere in a stream."""
    packer = zlib.compressobj(level, wbits=-15)
    return packer.compress(chunk) + packer.flush(zlib.Z_FULL_FLUSH)


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(v) + 0.0) for v in values)})"  # + 0.0: no "-0.0"


def _check_attached(header: dict) -> None:
    if any(key in header for key in ("data file", "datafile")):
        raise ImageError("voxels in another file: expected NRRD in one file")
    if header.get("encoding") not in ("raw", "gzip", "gz"):
        raise ImageError(f"encoding {str(header.get('encoding'))[:40]!r}: expected raw or gzip")
    if any(header.get(key) for key in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise ImageError("skipped lines or bytes before the voxels: expected none")


def _dtype(header: dict) -> np.dtype:
    kind = str(header.get("type"))
    if kind not in _DTYPES:
        raise ImageError(f"voxels of type {kind[:40]!r}: expected integers or floats")
    return _DTYPES[kind].newbyteorder(">" if header.get("endian") == "big" else "<")


def _spatial_axes(shape: tuple[int, ...], kinds: list[str]) -> list[int]:
    """The axes i, j and maybe k: all but one of colours."""
    colours = [a for a, kind in enumerate(kinds) if kind in ("rgb-color", "rgba-color", "vector", "3-color", "4-color")]
    axes = [a for a in range(len(shape)) if a not in colours]
    if len(axes) not in (2, 3) or len(colours) > 1:
        raise ImageError(f"size {list(shape)}: expected one 2D or 3D image, got a series or something else")
    return axes


def _as_colour(array: np.ndarray, axes: list[int]) -> np.ndarray:
    (channel,) = set(range(array.ndim)) - set(axes)
    if array.shape[channel] not in (3, 4) or array.dtype != np.uint8:
        raise ImageError(f"{array.shape[channel]} values of {array.dtype} per voxel: expected one, or uint8 RGB")
    return np.moveaxis(array, channel, -1)[..., :3]


def _has_spacing(header: dict) -> bool:
    return "space directions" in header or "spacings" in header


def _affine(header: dict, axes: list[int]) -> np.ndarray:
    """Index -> RAS; a 2D image lies in the plane of i and j."""
    affine = np.eye(4)
    directions = header.get("space directions")
    if directions is not None:
        columns = np.array([np.asarray(directions[a], np.float64) for a in axes]).T
        affine[: columns.shape[0], : columns.shape[1]] = columns
    elif "spacings" in header:
        spacings = np.asarray(header["spacings"], np.float64)[axes]
        np.fill_diagonal(affine[: len(axes), : len(axes)], np.where(np.isfinite(spacings), spacings, 1.0))
    origin = np.asarray(header.get("space origin", []), np.float64)
    affine[: len(origin), 3] = origin
    return np.diag([*_TO_RAS.get(str(header.get("space")).lower(), _LPS_TO_RAS), 1.0]) @ affine
