"""A simulated annotator: first prompts and corrective clicks from the truth. Used by training and evaluation alike.

Masks are bool [H, W]; coordinates (x, y) in that array's pixels. Source: IMIS-Net (arXiv 2411.12814), section 4.2.
"""

from __future__ import annotations

import numpy as np

from imis_net.errors import PromptError


def random_click(mask: np.ndarray, rng: np.random.Generator, closest_fraction: float = 1.0) -> np.ndarray:
    """A foreground click, float32 [2] (x, y).

    ``closest_fraction`` keeps only that share of the pixels, those nearest to the centroid; IMIS-Bench clicks within
    the nearest half.

    Raises:
        PromptError: the mask is empty.
    """
    inside = np.flatnonzero(mask)
    if len(inside) == 0:
        raise PromptError("cannot click in an empty mask")
    if closest_fraction < 1:
        rows, columns = np.divmod(inside, mask.shape[1])
        order = np.argsort((columns - columns.mean()) ** 2 + (rows - rows.mean()) ** 2, kind="stable")
        inside = inside[order[: max(1, int(len(inside) * closest_fraction))]]
    y, x = divmod(int(inside[rng.integers(len(inside))]), mask.shape[1])
    return np.array([x, y], np.float32)


def jittered_box(
    mask: np.ndarray,
    rng: np.random.Generator,
    max_offset_px: int = 5,
    pixel_size: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """The tight box, float32 [4] inclusive corners, each side moved by up to ``max_offset_px``, inside the image.

    ``pixel_size``: width and height of the pixels that the annotator sees, where the mask's own are finer.

    Raises:
        PromptError: the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        raise PromptError("cannot draw a box around an empty mask")
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    box += rng.integers(-max_offset_px, max_offset_px + 1, size=4) * np.tile(pixel_size, 2)
    height, width = mask.shape
    x0, x1 = _ordered(box[0], box[2], width)
    y0, y1 = _ordered(box[1], box[3], height)
    return np.array([x0, y0, x1, y1], np.float32)


def _ordered(low: float, high: float, size: int) -> tuple[float, float]:
    """A side of at least 2 pixels inside [0, size - 1], whatever the jitter did to a small target."""
    low, high = min(low, high), max(low, high)
    low = min(max(low, 0.0), size - 2.0)
    return low, min(max(high, low + 1.0), size - 1.0)


def correction_click(
    predicted: np.ndarray, target: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int] | None:
    """A random click in the error region: ((x, y), 1 where foreground was missed or 0 where it was too much).

    None where there is no error left.
    """
    wrong = np.flatnonzero(predicted != target)
    if len(wrong) == 0:
        return None
    y, x = divmod(int(wrong[rng.integers(len(wrong))]), target.shape[1])
    return np.array([x, y], np.float32), int(target[y, x])
