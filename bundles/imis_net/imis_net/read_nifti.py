"""NIfTI-1 and -2 in one file, .nii or .nii.gz: nibabel reads the header, the voxels are read here within bounds."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from imis_net.bounded_read import checked_num_bytes, open_maybe_gzip, read_array
from imis_net.errors import ImageError
from imis_net.volume import Volume

MAX_HEADER_BYTES = 2**24
"""Header and extensions: the voxels must start before this offset."""

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_nifti(head: bytes) -> bool:
    """By the first 348 bytes, unpacked: the header's own size, in either byte order, and the magic."""
    return _layout(head) is not None and (head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"))


def read_nifti(path: Path) -> Volume:
    """
    Raises:
        ImageError: a header in a file of its own, several volumes, a voxel type that is no image's, too few bytes.
    """
    stream, available = open_maybe_gzip(path)
    with stream:
        head = stream.read(540)
        layout = _layout(head)
        if layout is None:
            raise ImageError("not a NIfTI file")
        size, endianness = layout
        header = _HEADERS[size](head[:size], endianness=endianness, check=False)
        if header["magic"].item()[:3] not in (b"n+1", b"n+2"):
            raise ImageError("header and voxels in two files: expected NIfTI in one file")
        offset = float(header["vox_offset"])
        if not size <= offset <= MAX_HEADER_BYTES:
            raise ImageError(f"voxels at byte {offset:g}: expected {size} to {MAX_HEADER_BYTES}")
        shape = _spatial_shape(tuple(int(n) for n in header.get_data_shape()))
        dtype = header.get_data_dtype()
        checked_num_bytes(shape, dtype.itemsize, available)
        stream.seek(int(offset))
        voxels = _scaled(_as_channels(read_array(stream, shape, dtype)), header)
    return Volume(voxels, _affine(header, shape[2]))


def _layout(head: bytes) -> tuple[int, str] | None:
    """(header bytes, byte order as nibabel spells it)."""
    for endianness, order in (("<", "little"), (">", "big")):
        size = int.from_bytes(head[:4], order)  # type: ignore[arg-type]
        if size in _HEADERS and len(head) >= min(size, 348):
            return size, endianness
    return None


def _spatial_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """I, J, K; K = 1 for a picture."""
    if len(shape) < 2:
        raise ImageError(f"{len(shape)} dimensions: expected 2 or 3")
    if any(n != 1 for n in shape[3:]):
        raise ImageError(f"size {list(shape)}: expected one 3D image, got a series of them; give one volume")
    return (*shape, 1)[:3]


def _as_channels(voxels: np.ndarray) -> np.ndarray:
    """NIfTI's colour types are records of R, G, B and maybe A."""
    if voxels.dtype.names:
        return np.stack([voxels[name] for name in voxels.dtype.names[:3]], axis=-1)
    if voxels.dtype.kind not in "uif" or voxels.dtype.itemsize > 8:
        raise ImageError(f"voxels of type {voxels.dtype}: expected integers, floats of up to 64 bits or RGB")
    return voxels


def _scaled(voxels: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1, 0) or voxels.ndim == 4:
        return voxels
    with np.errstate(over="ignore", invalid="ignore"):
        return (voxels * np.float64(slope) + np.float64(intercept)).astype(np.float32)


def _affine(header: nib.Nifti1Header, num_slices: int) -> np.ndarray:
    """Sform, else qform, else voxel sizes along the axes of DICOM's patient: ITK's choice in each case, so that a
    viewer built on it lays masks over the image."""
    if int(header["sform_code"]) > 0:
        affine = header.get_sform()
    elif int(header["qform_code"]) > 0:
        affine = header.get_qform()
    else:
        affine = _RAS_TO_LPS @ np.diag([*(abs(float(v)) for v in header["pixdim"][1:4]), 1.0])
    affine = np.array(affine, np.float64)
    if num_slices == 1 and not affine[:3, 2].any():
        affine[:3, 2] = np.cross(*(affine[:3, a] / np.linalg.norm(affine[:3, a]) for a in (0, 1)))
    return affine
