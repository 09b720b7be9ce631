"""Metrics against MONAI, empty masks included."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou

from imis_net.metrics import dice, iou


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
