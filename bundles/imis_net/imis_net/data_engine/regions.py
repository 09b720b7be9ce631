"""What a mask looks like from outside: box, parts, holes, overlap. Masks are bool [H, W]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, both corners inside, as the reference takes boxes from masks."""


def bounding_box(mask: np.ndarray) -> Box:
    """The least box around a mask that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def box_iou(a: Box, b: Box) -> float:
    """In whole pixels: a box from 3 to 3 is one pixel wide."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(0, width) * max(0, height)
    return shared / (_box_area(a) + _box_area(b) - shared)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks of one size, not both empty."""
    shared = np.count_nonzero(a & b)
    return shared / (np.count_nonzero(a) + np.count_nonzero(b) - shared)


def count_parts(mask: np.ndarray) -> int:
    """Parts that touch nowhere, not even by a corner."""
    return int(ndimage.label(mask, EIGHT_NEIGHBOURS)[1])


def without_specks(mask: np.ndarray, min_part_px: float) -> tuple[np.ndarray, int]:
    """The parts of at least so many pixels, and how many pixels that left out."""
    parts, _ = ndimage.label(mask, EIGHT_NEIGHBOURS)
    stays = np.bincount(parts.ravel()) >= min_part_px
    stays[0] = False
    cleaned = stays[parts]
    return cleaned, int(np.count_nonzero(mask) - np.count_nonzero(cleaned))


def without_holes(mask: np.ndarray, max_hole_px: float) -> tuple[np.ndarray, int]:
    """The mask with every hole of fewer pixels filled, and how many pixels that were.

    A hole is background that reaches the border by no path through edges; background at the border is outside.
    """
    holes, _ = ndimage.label(~mask)
    fills = np.bincount(holes.ravel()) < max_hole_px
    fills[0] = False
    fills[_at_border(holes)] = False
    filled = mask | fills[holes]
    return filled, int(np.count_nonzero(filled) - np.count_nonzero(mask))


def suppressed_by(ious: np.ndarray, max_iou: float) -> np.ndarray:
    """Greedy non-maximum suppression in the given order, the best first.

    Args:
        ious: float [N, N].
        max_iou: of two that share more, the later goes.

    Returns:
        int [N]: the index of the survivor that suppresses each, or -1 for survivors.
    """
    by = np.full(len(ious), -1)
    for i in range(len(ious)):
        if by[i] < 0:
            later = np.arange(len(ious)) > i
            by[later & (by < 0) & (ious[i] > max_iou)] = i
    return by


def pairwise_box_iou(boxes: Sequence[Box]) -> np.ndarray:
    """[N, N], the same numbers as ``box_iou``."""
    x0, y0, x1, y1 = np.array(boxes, float).reshape(-1, 4).T
    width = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0) + 1
    height = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0) + 1
    shared = width.clip(0) * height.clip(0)
    areas = (x1 - x0 + 1) * (y1 - y0 + 1)
    return shared / (np.add.outer(areas, areas) - shared)


def pairwise_mask_iou(masks: Sequence[np.ndarray]) -> np.ndarray:
    """[N, N], the same numbers as ``mask_iou``."""
    return mask_ious(masks, masks)


def mask_ious(masks: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """[N, M], the same numbers as ``mask_iou``; 0 of two empty ones."""
    if not len(masks) or not len(others):
        return np.zeros((len(masks), len(others)))
    flat = _flat(masks)
    other_flat = flat if others is masks else _flat(others)
    shared = (flat @ other_flat.T).astype(float)
    union = np.add.outer(flat.sum(axis=1, dtype=float), other_flat.sum(axis=1, dtype=float)) - shared
    return shared / union.clip(1)


def _flat(masks: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [N, H * W]: sums are exact below 2**24 pixels, and a matrix product compares all with all."""
    return np.stack([m.ravel() for m in masks]).astype(np.float32)


def _box_area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _at_border(labels: np.ndarray) -> np.ndarray:
    return np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
