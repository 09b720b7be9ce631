"""Losses on mask logits, one value per mask.

Source: IMIS-Net (arXiv 2411.12814, section 4.2): 20 x focal + dice; IMIS-Bench adds the predicted IoU's squared error.
IMIS-Bench takes Dice and IoU over a whole batch as one set, so that a large target drowns the small ones; here every
mask counts by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (arXiv 1708.02002), mean over pixels: [B, 1, H, W] twice -> [B]."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    correct = probability * targets + (1 - probability) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * (1 - correct) ** gamma * cross_entropy).flatten(1).mean(1)


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over pixels: [B, 1, H, W] twice -> [B]."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1)


def dice_loss(logits: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - soft Dice: [B, 1, H, W] twice -> [B]."""
    probability, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = (probability * targets).sum(1)
    return 1 - (2 * overlap + smooth) / (probability.sum(1) + targets.sum(1) + smooth)


@torch.no_grad()
def mask_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU of thresholded logits with targets: [B, M, H, W] and [B, 1, H, W] -> [B, M]; two empty masks agree (1)."""
    predicted, truth = logits > 0, targets > 0.5
    intersection = (predicted & truth).sum((-2, -1)).float()
    union = (predicted | truth).sum((-2, -1)).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), torch.ones_like(union))


@dataclass(frozen=True)
class InteractiveLoss:
    """Weighted sum over one round's masks.

    Of the three ambiguity-aware masks the one nearest to the target learns its shape in full (Segment Anything, section
    3), the others at ``others_weight`` and low resolution, while the IoU head learns to rate all of them. With little
    data the others matter: a head that has not yet learned to rate should not be punished for its choice.
    """

    focal_weight: float = 20.0
    cross_entropy_weight: float = 0.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    others_weight: float = 0.0

    def masks(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, 1, H, W] twice -> [B]."""
        loss = self.dice_weight * dice_loss(logits, targets)
        if self.focal_weight:
            loss = loss + self.focal_weight * focal_loss(logits, targets)
        if self.cross_entropy_weight:
            loss = loss + self.cross_entropy_weight * cross_entropy_loss(logits, targets)
        return loss

    def __call__(self, low_res_masks: Tensor, iou_predictions: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, 4, S/4, S/4], predicted IoU [B, 4], targets float [B, 1, S, S] -> scalar."""
        candidates = low_res_masks[:, 1:]
        small = F.interpolate(targets, size=candidates.shape[-2:], mode="area")
        each = torch.stack([self.masks(c[:, None], small) for c in candidates.unbind(1)], dim=1)
        nearest = each.argmin(dim=1)
        chosen = candidates[torch.arange(len(nearest)), nearest][:, None]
        full = F.interpolate(chosen, size=targets.shape[-2:], mode="bilinear", align_corners=False)
        iou_error = (iou_predictions[:, 1:] - mask_iou(candidates, small)) ** 2
        shape = self.masks(full, targets).mean() + self.others_weight * each.mean()
        return shape + self.iou_weight * iou_error.mean()
