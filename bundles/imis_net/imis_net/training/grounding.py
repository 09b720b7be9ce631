"""Names taught where they lie: every known name of an image at once, those that are known to be absent included.

A text prompt comes up in few rounds and tells of one target; the grounding head's evidence can be compared with all
organs of an image at the cost of a few convolutions, and what it asks of the features teaches the encoder which organ
is which, which a single click needs as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imis_net.errors import DatasetError
from imis_net.losses import dice_loss
from imis_net.networks.imis_net import IMISNet

CELL_PX = 8
CROSS_ENTROPY_WEIGHT = 5.0

Coverage = Mapping[str, np.ndarray]
"""name -> float16 [S/8, S/8], the share of each cell that the name covers; zeros where it is known to be absent."""


def coverage(masks: Mapping[str, np.ndarray], absent: Sequence[str], image_size: int) -> Coverage:
    """Masks bool [H, W] of a view of whatever size, shown in a frame of ``image_size`` pixels."""
    side = image_size // CELL_PX
    nothing = np.zeros((side, side), np.float16)
    return {**dict.fromkeys(absent, nothing), **{name: _shares(mask, side) for name, mask in masks.items()}}


def grounding_loss(
    network: IMISNet, features: tuple[Tensor, ...], coverages: Sequence[Coverage | None]
) -> Tensor | None:
    """Dice loss of present names and cross-entropy of all that are known, mean over images; None if no image has any.

    Args:
        features: the encoder's output for I images, batch axis I.
        coverages: each image's; None or empty where no name is known.

    Raises:
        DatasetError: the network does not ground text in the image.
    """
    head, names = network.mask_decoder.grounding, network.known_texts
    if head is None or names is None:
        raise DatasetError(f"{network.name} does not ground text in the image")
    named = [(i, c) for i, c in enumerate(coverages) if c]
    if not named:
        return None
    images = [i for i, _ in named]
    position, text = network.prompt_encoder.dense_pe(), network.encode_text(names)
    evidence = head.of_all(tuple(f[images] for f in features), position, text).float()
    rows, columns, truth = [], [], []
    for row, (_, shares) in enumerate(named):
        for name, share in shares.items():
            rows.append(row)
            columns.append(names.index(name))
            truth.append(share)
    target = torch.from_numpy(np.stack(truth)).to(evidence.device).float()[:, None]
    logits = evidence[rows, columns][:, None]
    loss = CROSS_ENTROPY_WEIGHT * F.binary_cross_entropy_with_logits(logits, target)
    present = target.flatten(1).amax(1) > 0.5
    if present.any():
        loss = loss + dice_loss(logits[present], target[present]).mean()
    return loss


def _shares(mask: np.ndarray, side: int) -> np.ndarray:
    pixels = torch.from_numpy(mask)[None, None].float()
    return F.adaptive_avg_pool2d(pixels, side)[0, 0].numpy().astype(np.float16)
