"""Agreement of two masks, bool [H, W]."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import compute_surface_dice


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|); two empty masks agree (1)."""
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2 * int((predicted & truth).sum()) / total


def surface_dice(predicted: np.ndarray, truth: np.ndarray, tolerance_px: float = 2.0) -> float:
    """Normalised surface Dice: the share of both borders within ``tolerance_px`` of the other; MONAI's, on a crop."""
    if not predicted.any() or not truth.any():
        return float(predicted.any() == truth.any())
    rows, columns = (np.flatnonzero((predicted | truth).any(axis)) for axis in (1, 0))
    crop = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    ours, theirs = (torch.from_numpy(np.pad(m[crop], 2))[None, None].float() for m in (predicted, truth))
    return float(compute_surface_dice(ours, theirs, [tolerance_px], include_background=True)[0, 0])


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """|A and B| / |A or B|; two empty masks agree (1)."""
    union = int((predicted | truth).sum())
    return 1.0 if union == 0 else int((predicted & truth).sum()) / union
