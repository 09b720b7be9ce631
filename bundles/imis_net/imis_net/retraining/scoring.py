"""What a model thinks of an image that nobody has labelled: how unsure it is, and what the image is like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from imis_net.metrics import dice
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.retraining.selection import ImageScore
from imis_net.segmenter import Segmenter

NUM_TARGETS = 3
"""The targets that the model is surest to see; of the others it may be right that they are not there."""
MAX_NUM_NAMES = 16
GRID = 4
"""Clicks per side where text is not understood."""


def score_image(segmenter: Segmenter, embedding: ImageEmbedding, names: Sequence[str]) -> ImageScore:
    """Uncertainty: the mean of 1 - predicted IoU and of the disagreement between a name and a click in its mask.

    A segmenter without text is asked for a grid of clicks, and for a second click in each mask.
    """
    height, width = embedding.original_size
    prompts = [Prompt(text=name) for name in names[:MAX_NUM_NAMES]] or _grid(height, width)
    found = [p for p in segmenter.predict_batch(embedding, prompts) if p.mask.any()]
    found = sorted(found, key=lambda p: p.iou_prediction, reverse=True)[:NUM_TARGETS]
    if not found:
        return ImageScore(1.0, _descriptor(embedding))
    again = segmenter.predict_batch(embedding, [_click(*_middle(p.mask)) for p in found])
    doubts = [_doubt(one, other) for one, other in zip(found, again, strict=True)]
    return ImageScore(float(np.mean(doubts)), _descriptor(embedding))


def _doubt(one: Prediction, other: Prediction) -> float:
    return 0.5 * (1 - one.iou_prediction) + 0.5 * (1 - dice(one.mask, other.mask))


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the mask's border."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def _click(x: int, y: int) -> Prompt:
    return Prompt(point_coords=np.array([[x, y]], np.float32), point_labels=np.array([1]))


def _grid(height: int, width: int) -> list[Prompt]:
    ys, xs = ((np.arange(GRID) + 0.5) * side / GRID for side in (height, width))
    return [_click(int(x), int(y)) for y in ys for x in xs]


def _descriptor(embedding: ImageEmbedding) -> np.ndarray:
    """The pooled embedding, of length 1: float32 [C]."""
    pooled = embedding.features[0].float().mean(dim=(0, 2, 3)).cpu().numpy()
    return pooled / max(float(np.linalg.norm(pooled)), 1e-6)
