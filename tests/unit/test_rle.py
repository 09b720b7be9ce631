"""Run lengths of what changed: applied to the old mask they give the new one."""

import numpy as np
import pytest

from imis_net.rle import apply_patch, changed_patch, decode_runs, encode_runs


def test_patches_rebuild_the_mask_whatever_changed() -> None:
    """Breaks if a viewer that applies patches drifts from the server's mask."""
    rng = np.random.default_rng(0)
    shown = np.zeros((23, 31), bool)
    for _ in range(200):
        new = shown.copy()
        y, x = rng.integers(0, (23, 31))
        new[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] ^= rng.random() < 0.9
        patch = changed_patch(shown, new)
        if patch is None:
            assert np.array_equal(shown, new)
            continue
        apply_patch(shown, patch)
        assert np.array_equal(shown, new)


def test_the_box_is_the_smallest() -> None:
    """Breaks if every click sends the whole slice."""
    old, new = np.zeros((50, 60), bool), np.zeros((50, 60), bool)
    new[10, 20] = new[12, 25] = True
    patch = changed_patch(old, new)
    assert patch is not None
    assert patch.box == (20, 10, 25, 12)
    assert patch.counts == (0, 1, 16, 1)


def test_runs_by_hand_and_damaged_runs() -> None:
    """Breaks if the first run is not of zeros, or if a short answer is painted shifted."""
    assert encode_runs(np.array([[0, 1, 1], [1, 0, 0]], bool)) == (1, 3, 2)
    assert decode_runs((0, 2, 1, 3), 2, 3).tolist() == [[True, True, False], [True, True, True]]
    with pytest.raises(ValueError, match="expected 6 pixels, got 5"):
        decode_runs((0, 2, 3), 2, 3)
