"""Unnamed targets: dense interactive masks where the data has them, regions of equal appearance where it has not."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu
from skimage.segmentation import felzenszwalb

from imis_net.training.dataset import Record

MIN_SHARE = 0.0005
"""IMIS-Bench drops interactive masks, and parts of them, under 0.05 % of the image."""


def interactive_map(record: Record) -> np.ndarray:
    """The record's interactive masks, or regions that stand in for them: uint16 [H, W], 0 for none."""
    if record.interactive_masks is not None:
        return record.interactive_masks
    return appearance_regions(record.image)


def appearance_regions(image: np.ndarray) -> np.ndarray:
    """Regions of equal appearance of uint8 [H, W, 3], uint16 [H, W] from 1; 0 where it is background."""
    size = max(image.shape[:2])
    grey = image.mean(-1) / 255
    regions = felzenszwalb(grey, scale=size / 4, sigma=1.0, min_size=size // 6).astype(np.uint16) + 1
    counts = np.bincount(regions.ravel())
    brightness = np.bincount(regions.ravel(), weights=grey.ravel()) / np.maximum(counts, 1)
    drop = np.flatnonzero((counts > 0.5 * regions.size) | (brightness < 0.03))
    regions[np.isin(regions, drop)] = 0
    return regions


def intensity_classes(image: np.ndarray, num_classes: int) -> np.ndarray:
    """Tissues of uint8 [H, W, 3] by brightness alone, uint16 [H, W] from 1; 0 where it is background.

    A class is in many pieces, as grey matter or a cell membrane is, which no region of equal appearance shows.

    Raises:
        ValueError: the image has fewer grey values than classes.
    """
    grey = ndimage.gaussian_filter(image.mean(-1), sigma=max(image.shape[:2]) / 500)
    shown = grey > 0.03 * 255
    thresholds = threshold_multiotsu(grey[shown].astype(np.uint8), num_classes)
    return np.where(shown, np.digitize(grey, thresholds, right=True) + 1, 0).astype(np.uint16)


def cleaned(mask: np.ndarray) -> np.ndarray:
    """bool [H, W] without specks, as IMIS-Bench's loader does it: opened, closed, without parts under ``MIN_SHARE``."""
    mask = ndimage.binary_closing(ndimage.binary_opening(mask))
    parts, _ = ndimage.label(mask)
    counts = np.bincount(parts.ravel())
    counts[0] = 0
    return np.isin(parts, np.flatnonzero(counts >= MIN_SHARE * mask.size))
