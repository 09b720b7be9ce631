"""One decoded image, in its own grid: voxels, where they lie in the patient, and how a slice becomes uint8 RGB.

Index order is [i, j, k] as viewers send it and files store it (i fastest); nothing is ever turned to RAS. The slice of
an axis keeps the two other axes, the higher one as rows:

    axis 2: rows j, columns i      axis 1: rows k, columns i      axis 0: rows k, columns j
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from imis_net.errors import ImageError

Window = tuple[float, float]
"""(center, width) in the image's own unit, HU for CT."""

CT_WINDOW: Window = (40.0, 400.0)
"""-160 to 240 HU, the usual soft tissue window, in which most targets (organs, vessels, tumours) differ from what is
around them. Lung and bone want another, which the caller may give."""

HOUNSFIELD_MINIMUM = (-8192.0, -500.0)
"""The least value of a CT in HU lies here: it holds air (-1000) or a scanner's padding (-1024, -2048, -3024)."""

PERCENTILES = (0.5, 99.5)
"""What becomes black and white where no unit tells: a few hot voxels shall not darken the rest."""

MAX_NUM_SAMPLES = 2_000_000
"""Voxels looked at for the percentiles: enough for the third digit, and 40 ms instead of seconds on a large volume."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image, or a 2D one with K = 1.

    Attributes:
        array: [I, J, K], or uint8 [I, J, K, 3] for colour; any other real dtype in the first case.
        affine: float64 [4, 4], voxel index (i, j, k, 1) -> RAS in mm.
        modality: the DICOM modality such as "CT", or None where the file does not say.
        has_spacing: False where the file gives no pixel size; ``affine`` then counts in pixels.

    Raises:
        ImageError: an array of another shape or dtype, an affine that cannot be inverted.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str | None = None
    has_spacing: bool = True

    def __post_init__(self) -> None:
        shape, dtype = self.array.shape, self.array.dtype
        is_colour = len(shape) == 4 and shape[3] == 3 and dtype == np.uint8
        if min(shape, default=0) < 1 or not (is_colour or (len(shape) == 3 and dtype.kind in "uif")):
            raise ImageError(f"expected voxels [I, J, K] or uint8 [I, J, K, 3], got {dtype} {list(shape)}")
        affine = np.asarray(self.affine, np.float64)
        is_regular = affine.shape == (4, 4) and np.isfinite(affine).all()
        if not is_regular or not _is_invertible(affine[:3, :3]):
            raise ImageError(
                f"unusable geometry: expected an invertible 4 x 4 matrix, got {np.asarray(affine).tolist()}"
            )
        object.__setattr__(self, "affine", affine)

    @property
    def is_colour(self) -> bool:
        return self.array.ndim == 4

    @cached_property
    def spacing_mm(self) -> np.ndarray:
        """float64 [3]: distance between neighbours along i, j and k in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def num_slices(self, axis: int = 2) -> int:
        return self.array.shape[_checked_axis(axis)]

    def pixel_spacing_mm(self, axis: int = 2) -> tuple[float, float]:
        """Distance between the rows, and between the columns, of that axis' slices in mm."""
        columns, rows = (a for a in range(3) if a != _checked_axis(axis))
        return float(self.spacing_mm[rows]), float(self.spacing_mm[columns])

    def slice_rgb(self, index: int, axis: int = 2, window: Window | None = None) -> np.ndarray:
        """One slice as a picture: uint8 [H, W, 3], contiguous.

        Colour comes unchanged and has no window. Of grey images ``window`` maps to black and white; without it 8 bits
        stay as they are, CT gets ``CT_WINDOW`` and everything else the whole volume's percentiles, so that
        neighbouring slices look alike. NaN becomes black.

        Raises:
            ImageError: no such slice or axis, a window that is not finite or has no width.
        """
        limits = None if window is None else _checked_limits(window)
        pixels = self._slice(index, axis)
        if self.is_colour:
            return np.ascontiguousarray(pixels.swapaxes(0, 1))
        if limits is not None or self.array.dtype != np.uint8:
            pixels = _stretched(pixels, *(limits or self.default_limits))
        return np.repeat(pixels.T[:, :, None], 3, axis=2)

    def place_mask(self, mask: np.ndarray, index: int, axis: int = 2) -> np.ndarray:
        """uint8 [I, J, K], zero but for one slice: the inverse of ``slice_rgb`` for a mask [H, W] of it.

        Raises:
            ImageError: no such slice or axis, a mask of another size.
        """
        expected = self._slice(index, axis).shape[1::-1]
        if mask.shape != expected:
            raise ImageError(f"mask of slice {index} on axis {axis}: expected {list(expected)}, got {list(mask.shape)}")
        placed = np.zeros(self.array.shape[:3], np.uint8, order="F")
        np.moveaxis(placed, axis, -1)[..., index] = mask.T
        return placed

    @cached_property
    def default_limits(self) -> tuple[float, float]:
        """The values that become black and white when no window is asked for."""
        step = self.array.size // MAX_NUM_SAMPLES
        samples = self.array.ravel(order="K")[:: step | 1]  # an odd step, or a power-of-two width hides columns
        samples = samples[np.isfinite(samples)]
        if samples.size == 0:
            return 0.0, 1.0
        if self.modality == "CT" or (self.modality is None and _is_hounsfield(samples)):
            return _checked_limits(CT_WINDOW)
        low, high = (float(v) for v in np.percentile(samples, PERCENTILES))
        if low < high:
            return low, high
        return float(samples.min()), float(samples.max())  # almost empty: what there is lies beyond the percentiles

    def _slice(self, index: int, axis: int) -> np.ndarray:
        count = self.num_slices(axis)
        try:
            position = operator.index(index)
        except TypeError as error:
            raise ImageError(f"slice: expected a whole number, got {index!r}") from error
        if not 0 <= position < count:
            raise ImageError(f"no such slice: got {position}, expected 0 to {count - 1} on axis {axis}")
        return self.array[(slice(None),) * axis + (position,)]  # a view; take() would copy the volume


def _checked_axis(axis: int) -> int:
    if axis not in (0, 1, 2):
        raise ImageError(f"axis: expected 0, 1 or 2, got {axis!r}")
    return axis


def _checked_limits(window: Window) -> tuple[float, float]:
    try:
        center, width = (float(v) for v in window)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageError(f"window: expected center and width, got {str(window)[:80]}") from error
    if not (np.isfinite(center) and np.isfinite(width) and width > 0):
        raise ImageError(f"window: expected a finite center and a width above 0, got {center:g}, {width:g}")
    return center - width / 2, center + width / 2


def _stretched(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low`` and below -> 0, ``high`` and above -> 255, linear between; uint8 of the same shape."""
    if not 0 < high - low < np.inf:
        return np.zeros(pixels.shape, np.uint8)
    values = np.nan_to_num(pixels.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _is_hounsfield(samples: np.ndarray) -> bool:
    low, high = HOUNSFIELD_MINIMUM
    return bool(low <= samples.min() <= high and (samples == np.rint(samples)).all())


def _is_invertible(matrix: np.ndarray) -> bool:
    lengths = np.linalg.norm(matrix, axis=0)
    return bool((lengths > 0).all() and np.isfinite(lengths).all() and abs(np.linalg.det(matrix / lengths)) > 1e-6)
