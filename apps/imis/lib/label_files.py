"""Is an uploaded file a label of this image? What is not is refused before it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from imis_net.errors import ImageError
from imis_net.images import Volume, read_volume

RAW_SUFFIX = ".bin"
"""OHIF's: one byte per voxel in the image's own order, and nothing else."""
MAX_OFF_PX = 0.1
"""How far a label's corner may lie from its image's, in pixels: files round their geometry to a few digits."""


class LabelError(ValueError):
    """Not a label of this image; the message says what was got and what expected."""


def checked_label(path: Path, image: Volume) -> Path:
    """The file in the image's voxel order: itself, or beside it one that was turned, if stored along other axes.

    Raises:
        LabelError: unreadable, of another size or place, or with values that are no whole numbers from 0 to 65535.
    """
    shape = image.array.shape[:3]
    if path.suffix == RAW_SUFFIX:
        if path.stat().st_size != np.prod(shape):
            raise LabelError(f"label: expected {np.prod(shape)} bytes for {list(shape)}, got {path.stat().st_size}")
        return path
    try:
        label = read_volume(path)
    except ImageError as error:
        raise LabelError(f"label: {error}") from error
    if label.is_colour:
        raise LabelError("label: expected one value per voxel, got colours")
    _check_values(label.array)
    if _is_same_grid(label, image):
        return path
    turned = path.with_name("turned.nii")
    turned.write_bytes(_turned(label, image))
    return turned


def label_array(content: bytes, suffix: str, shape: Sequence[int]) -> np.ndarray:
    """A kept file's values [i, j, k]; raw bytes get the image's ``shape``.

    Raises:
        ImageError: it cannot be read.
    """
    if suffix == RAW_SUFFIX:
        return np.frombuffer(content, np.uint8).reshape(tuple(shape), order="F")
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        return read_volume(Path(file.name)).array


def _check_values(array: np.ndarray) -> None:
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite([low, high]).all() and low >= 0 and high <= np.iinfo(np.uint16).max):
        raise LabelError(f"label: expected values from 0 to 65535, got {low:g} to {high:g}")
    if array.dtype.kind == "f" and (array != np.rint(array)).any():
        raise LabelError("label: expected whole numbers, got fractions")


def _is_same_grid(label: Volume, image: Volume) -> bool:
    if label.array.shape != image.array.shape[:3]:
        return False
    if not (label.has_spacing and image.has_spacing):
        return True  # one of the files says nothing about place
    off_mm = np.abs(_corners(label) - _corners(image)).max()
    return bool(off_mm <= MAX_OFF_PX * image.spacing_mm.min())


def _turned(label: Volume, image: Volume) -> bytes:
    """The label in the image's voxel order, as NIfTI."""
    turn = ornt_transform(io_orientation(label.affine), io_orientation(image.affine))
    array = apply_orientation(label.array, turn)
    affine = label.affine @ inv_ornt_aff(turn, label.array.shape)
    turned = Volume(np.ascontiguousarray(array), affine, label.modality, label.has_spacing)
    if not _is_same_grid(turned, image):
        raise LabelError(
            f"label: expected the image's grid, {_grid(image)}; got {_grid(label)}, which is not that one turned either"
        )
    return bytes(nib.Nifti1Image(turned.array.astype(np.uint16), image.affine).to_bytes())


def _corners(volume: Volume) -> np.ndarray:
    """The centres of the eight corner voxels in mm, [4, 8]."""
    ends = np.array(volume.array.shape[:3]) - 1
    indices = np.array([[*(np.array(c) * ends), 1] for c in np.ndindex(2, 2, 2)])
    return volume.affine @ indices.T


def _grid(volume: Volume) -> str:
    spacing = " x ".join(f"{s:.3g}" for s in volume.spacing_mm)
    origin = ", ".join(f"{v:.4g}" for v in volume.affine[:3, 3])
    return f"{list(volume.array.shape[:3])} of {spacing} mm at ({origin})"
