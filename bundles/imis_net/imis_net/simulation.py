"""A simulated annotator: first prompts and corrective clicks from the truth. Used by training and evaluation alike.

The functions of many masks take bool [B, H, W] on any device and wait for none; what is random about them is an
argument. Those of one mask take bool [H, W] and a generator. Coordinates are (x, y) in the mask's pixels.
Source: IMIS-Net (arXiv 2411.12814), section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imis_net.errors import PromptError


def clicks_within(masks: Tensor, shares: Tensor, closest_fraction: float = 1.0) -> Tensor:
    """A foreground pixel of each mask, float32 [B, 2].

    Args:
        masks: bool [B, H, W]; an empty one is clicked at its first pixel.
        shares: [B] in [0, 1): how far down the mask's pixels, row by row, the click lies.
        closest_fraction: keeps only that share of the pixels, those nearest to the centroid; IMIS-Bench clicks within
            the nearest half.
    """
    if closest_fraction < 1:
        masks = _nearest_to_centroid(masks, closest_fraction)
    by_row = masks.sum(2, dtype=torch.int32)
    so_far = by_row.cumsum(1, dtype=torch.int32)
    counts = so_far[:, -1]
    number = (shares.to(counts.device) * counts).to(torch.int32).clamp(max=counts - 1)[:, None] + 1
    y = torch.searchsorted(so_far, number)
    number = number - (so_far - by_row).gather(1, y)
    x = torch.searchsorted(masks[torch.arange(len(y), device=y.device), y[:, 0]].cumsum(1, dtype=torch.int32), number)
    return torch.cat([x, y], dim=1).float()


def boxes_around(masks: Tensor, offsets: Tensor) -> Tensor:
    """The tight boxes with each side moved by ``offsets``, inside the image and never without area.

    Args:
        masks: bool [B, H, W], none empty.
        offsets: [B, 4] pixels.

    Returns:
        float32 [B, 4], inclusive corners x0, y0, x1, y1.
    """
    height, width = masks.shape[-2:]
    columns, rows = masks.any(1), masks.any(2)
    sides = [_first(columns), _first(rows), width - 1 - _first(columns.flip(1)), height - 1 - _first(rows.flip(1))]
    x0, y0, x1, y1 = (torch.stack(sides, dim=1) + offsets.to(masks.device)).float().unbind(1)
    (x0, x1), (y0, y1) = _ordered(x0, x1, width), _ordered(y0, y1, height)
    return torch.stack([x0, y0, x1, y1], dim=1)


def correction_clicks(predicted: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """A click in each target's error region; where there is no error left, one that confirms the target.

    Args:
        predicted, targets: bool [B, H, W].
        shares: [B], see ``clicks_within``.

    Returns:
        float32 [B, 2], and int64 [B]: 1 where foreground was missed, 0 where there was too much.
    """
    wrong = predicted != targets
    region = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, targets)
    clicks = clicks_within(region, shares)
    x, y = clicks.long().unbind(1)
    return clicks, targets[torch.arange(len(targets), device=targets.device), y, x].long()


def random_click(mask: np.ndarray, rng: np.random.Generator, closest_fraction: float = 1.0) -> np.ndarray:
    """A foreground click on bool [H, W], float32 [2]; see ``clicks_within``.

    Raises:
        PromptError: the mask is empty.
    """
    if not mask.any():
        raise PromptError("cannot click in an empty mask")
    return clicks_within(_batch(mask), random_shares([rng]), closest_fraction)[0].numpy()


def jittered_box(
    mask: np.ndarray,
    rng: np.random.Generator,
    max_offset_px: int = 5,
    pixel_size: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """The tight box around bool [H, W], float32 [4] inclusive corners, each side moved; see ``box_offsets``.

    Raises:
        PromptError: the mask is empty.
    """
    if not mask.any():
        raise PromptError("cannot draw a box around an empty mask")
    return boxes_around(_batch(mask), torch.from_numpy(box_offsets(rng, max_offset_px, pixel_size)[None]))[0].numpy()


def box_offsets(rng: np.random.Generator, max_offset_px: int, pixel_size: tuple[float, float]) -> np.ndarray:
    """How far an annotator misses each side of a box, float64 [4].

    ``pixel_size``: width and height of the pixels that the annotator sees, where the mask's own are finer.
    """
    return rng.integers(-max_offset_px, max_offset_px + 1, size=4) * np.tile(pixel_size, 2)


def correction_click(
    predicted: np.ndarray, target: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int] | None:
    """A random click in the error region of bool [H, W]: ((x, y), 1 where foreground was missed or 0).

    None where there is no error left.
    """
    if np.array_equal(predicted, target):
        return None
    clicks, labels = correction_clicks(_batch(predicted), _batch(target), random_shares([rng]))
    return clicks[0].numpy(), int(labels[0])


def _batch(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, bool))[None]


def random_shares(rngs: Sequence[np.random.Generator]) -> Tensor:
    """One of each generator, float32 [B]; see ``clicks_within``."""
    return torch.tensor([rng.random() for rng in rngs], dtype=torch.float32)


def _first(flags: Tensor) -> Tensor:
    """Index of the first true value along axis 1."""
    return flags.to(torch.uint8).argmax(1)


def _nearest_to_centroid(masks: Tensor, fraction: float) -> Tensor:
    flat = masks.flatten(1)
    index = torch.arange(flat.shape[1], device=masks.device)
    width = masks.shape[-1]
    counts = flat.sum(1, keepdim=True)
    distance2 = torch.zeros_like(flat, dtype=torch.float32)
    for at in (index % width, index // width):
        centre = (flat * at).sum(1, keepdim=True) / counts.clamp(min=1)
        distance2 += (at - centre) ** 2
    order = distance2.masked_fill(~flat, torch.inf).argsort(dim=1, stable=True)
    kept = (counts * fraction).long().clamp(min=1)
    return torch.zeros_like(flat).scatter(1, order, index < kept).view_as(masks)


def _ordered(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sides of at least 2 pixels inside [0, size - 1], whatever the jitter did to a small target."""
    low, high = torch.minimum(low, high).clamp(0.0, size - 2.0), torch.maximum(low, high)
    return low, torch.maximum(high, low + 1.0).clamp(max=size - 1.0)
