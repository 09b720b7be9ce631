"""Losses, against MONAI's and by hand."""

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss

from imis_net.losses import InteractiveLoss, cross_entropy_loss, dice_loss, focal_loss, mask_iou


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 1, 16, 16, generator=generator) * 3, (
        torch.rand(3, 1, 16, 16, generator=generator) > 0.7
    ).float()


def test_dice_is_monais_per_mask(case):
    """Breaks if Dice is taken over the whole batch as one set, as IMIS-Bench does."""
    expected = DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, reduction="none")(*case).flatten()
    torch.testing.assert_close(dice_loss(*case), expected)


def test_focal_is_monais(case):
    """Breaks if alpha goes to the background, or gamma changes."""
    expected = FocalLoss(alpha=0.25, gamma=2, reduction="none")(*case).flatten(1).mean(1)
    torch.testing.assert_close(focal_loss(*case), expected)


def test_iou_of_empty_masks_is_one():
    """Breaks if an empty target and an empty answer divide by zero or count as a miss."""
    empty = torch.zeros(1, 1, 4, 4)
    assert mask_iou(empty - 1, empty).item() == 1
    assert mask_iou(empty + 1, empty).item() == 0


def test_only_the_nearest_candidate_learns_its_shape(case):
    """Breaks if all three masks are pulled to one shape, or the unambiguous one is trained instead."""
    target = case[1][:1]
    logits = torch.zeros(1, 4, 4, 4)
    logits[:, 2] = torch.nn.functional.interpolate(target * 8 - 4, size=(4, 4), mode="area")[:, 0]
    logits.requires_grad_(True)
    loss = InteractiveLoss(focal_weight=0, cross_entropy_weight=1, iou_weight=0)
    loss(logits, torch.zeros(1, 4), target).backward()
    assert logits.grad[:, 2].abs().sum() > 0
    assert logits.grad[:, [0, 1, 3]].abs().sum() == 0


def test_terms_are_weighted_as_told(case):
    """Breaks if 20 x focal + dice loses a factor."""
    loss = InteractiveLoss(focal_weight=20, cross_entropy_weight=5, dice_weight=1)
    expected = 20 * focal_loss(*case) + 5 * cross_entropy_loss(*case) + dice_loss(*case)
    torch.testing.assert_close(loss.masks(*case), expected)
