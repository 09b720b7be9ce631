"""Metrics against MONAI, empty masks included."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou, compute_surface_dice

from imis_net.metrics import dice, iou, surface_dice


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_random_masks_agree_with_monai(share):
    """Breaks if a formula is off, or empty masks are counted as misses."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        a, b = rng.random((2, 9, 11)) < share
        pair = [torch.from_numpy(m)[None, None].float() for m in (a, b)]
        if a.any() or b.any():
            assert dice(a, b) == pytest.approx(compute_dice(*pair, ignore_empty=False).item(), abs=1e-6)
            assert iou(a, b) == pytest.approx(compute_iou(*pair, ignore_empty=False).item(), abs=1e-6)
        else:
            assert dice(a, b) == iou(a, b) == 1


def test_surface_dice_on_a_crop_is_that_of_the_whole():
    """Breaks if cropping cuts a border off, or a mask against none does not score 0."""
    a, b = np.zeros((2, 60, 60), bool)
    a[5:30, 0:20] = True
    b[8:30, 1:26] = True
    pair = [torch.from_numpy(np.pad(m, 2))[None, None].float() for m in (a, b)]
    expected = compute_surface_dice(*pair, class_thresholds=[2], include_background=True).item()
    assert surface_dice(a, b) == pytest.approx(expected)
    assert surface_dice(a, np.zeros_like(a)) == 0
    assert surface_dice(np.zeros_like(a), np.zeros_like(a)) == 1
