"""Teach the names to the grounding head alone, on image features that are encoded once.

Text comes up in few examples of the interactive training, and each costs an encoder run and a decoder. With encoder
and decoder frozen, all names of an image are learned at once at the cost of a few convolutions, names that are known
to be absent included.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imis_net.errors import DatasetError
from imis_net.losses import dice_loss
from imis_net.networks.imis_net import IMISNet
from imis_net.training.augmentation import random_intensity, random_view, resize_image
from imis_net.training.dataset import Record
from imis_net.training.sampler import WIDE_SCALES, canonical_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NamedView:
    """A view's features in half precision, batch axis 1, and the share of each cell at S/8 that each name covers."""

    features: tuple[Tensor, ...]
    names: tuple[str, ...]
    truth: Tensor


@torch.no_grad()
def encode_views(
    network: IMISNet, records: Sequence[Record], num_views: int, complete: Sequence[str], rng: np.random.Generator
) -> list[NamedView]:
    """Encode ``num_views`` whole, unflipped views of every record that has targets with names.

    Args:
        complete: parts of sources' names in which every image is labelled completely, so that what another image of
            the source has and this one lacks is absent from it.
    """
    known = network.known_texts or ()
    named = [(r, masks) for r in records if (masks := _named_masks(r, known))]
    if not named:
        raise DatasetError(f"no target with a known name in {len(records)} records")
    vocabulary = {part: {n for r, masks in named if part in r.source for n in masks} for part in complete}
    views = []
    for record, masks in named:
        absent = [n for part in complete if part in record.source for n in vocabulary[part]]
        for _ in range(num_views):
            views.append(_encode_view(network, record, masks, sorted({*masks, *absent}), rng))
    return views


def ground_text(
    network: IMISNet, views: Sequence[NamedView], num_steps: int, rng: np.random.Generator, learning_rate: float = 2e-3
) -> list[float]:
    """Train the grounding head in place; returns the mean soft Dice of present names, one figure per 100 steps."""
    head = network.mask_decoder.grounding
    if head is None:
        raise DatasetError(f"{network.name} does not ground text in the image")
    head.train()
    optimiser = torch.optim.AdamW(head.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=num_steps, pct_start=0.1)
    position = network.prompt_encoder.dense_pe()
    recent: list[float] = []
    curve: list[float] = []
    for step in range(1, num_steps + 1):
        view = views[rng.integers(len(views))]
        with torch.no_grad():
            text = network.encode_text(view.names)
        evidence, _ = head(tuple(f.float() for f in view.features), position, text)
        truth = view.truth.float()
        present = truth.flatten(1).amax(1) > 0.5
        dice = dice_loss(evidence[present], truth[present])
        loss = dice.mean() + F.binary_cross_entropy_with_logits(evidence, truth) * 5
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        recent.append(1 - dice.mean().item())
        if step % 100 == 0:
            curve.append(float(np.mean(recent)))
            log.info("grounding step %d of %d: soft Dice %.3f", step, num_steps, curve[-1])
            recent.clear()
    head.eval()
    return curve


def _named_masks(record: Record, known: Sequence[str]) -> dict[str, np.ndarray]:
    masks: dict[str, np.ndarray] = {}
    for name, mask in record.masks():
        name = canonical_name(name)
        if name in known:
            masks[name] = masks[name] | mask if name in masks else mask
    return masks


def _encode_view(
    network: IMISNet, record: Record, masks: dict[str, np.ndarray], names: Sequence[str], rng: np.random.Generator
) -> NamedView:
    side = network.image_size
    view = random_view(record.image.shape, next(iter(masks.values())), *WIDE_SCALES, 0.0, rng)
    image = random_intensity(resize_image(view.apply(record.image), side, side), rng)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    features = network.encode_image((pixels - network.pixel_mean) / network.pixel_std)
    nothing = np.zeros(record.image.shape[:2], bool)
    crops = np.stack([view.apply(masks.get(n, nothing)) for n in names]).astype(np.float32)
    truth = F.adaptive_avg_pool2d(torch.from_numpy(crops)[:, None], side // 8)
    return NamedView(tuple(f.half() for f in features), tuple(names), truth.half())
