"""Views: every flip and transposition against numpy, crops against a padded original."""

import itertools

import numpy as np
import pytest

from imis_net.training.augmentation import (
    View,
    random_view,
    random_warp,
    resize_labels,
    warp_image,
    warp_labels,
    whole_view,
)
from imis_net.transforms import Frame

FLIPS = list(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("corner", [(2, 3), (-4, -2), (5, 9), (-30, 4), (40, 0)])
def test_views_are_crops_of_the_padded_image(flips, corner):
    """Breaks if padding shifts the crop, or flips act on the wrong axis or after the transposition."""
    array = np.random.default_rng(0).integers(1, 255, (13, 17, 3), np.uint8)
    top, left = corner
    padded = np.pad(array, ((50, 50), (50, 50), (0, 0)))
    expected = padded[50 + top : 50 + top + 9, 50 + left : 50 + left + 11]
    expected = np.flip(expected, [axis for axis in (0, 1) if flips[axis]])
    if flips[2]:
        expected = np.transpose(expected, (1, 0, 2))
    assert np.array_equal(View(top, left, 9, 11, flips).apply(array), expected)


@pytest.mark.parametrize("flips", FLIPS)
def test_only_the_unflipped_view_keeps_sides(flips):
    """Breaks if a view turned by two flips still calls the left kidney left: row flips turn prone to supine."""
    assert View(0, 0, 4, 4, flips).keeps_sides == (not any(flips))


@pytest.mark.parametrize("shape", [(30, 200), (200, 30), (90, 90)])
def test_random_views_show_a_pixel_of_the_focus(shape):
    """Breaks if a view misses what it was drawn for, so that draws are thrown away."""
    focus = np.zeros(shape, bool)
    focus[shape[0] - 1, 0] = True
    for seed in range(60):
        view = random_view(shape, focus, 0.3, 1.5, 0.5, np.random.default_rng(seed))
        assert view.height == view.width >= 32
        assert view.apply(focus).sum() == 1


def test_stretched_views_stay_on_the_focus():
    """Breaks if shortening one side moves the view off what it was drawn for, or shortens both."""
    focus = np.zeros((90, 120), bool)
    focus[70, 100] = True
    views = [random_view((90, 120), focus, 0.5, 1.2, 0.0, np.random.default_rng(i), 1.0) for i in range(60)]
    assert all(v.apply(focus).sum() == 1 for v in views)
    assert any(v.height < v.width for v in views)
    assert any(v.height > v.width for v in views)


def test_whole_view_changes_nothing():
    """Breaks if rows and columns are swapped."""
    array = np.random.default_rng(0).random((5, 9))
    assert np.array_equal(whole_view(array.shape).apply(array), array)


def test_masks_and_labels_resize_to_the_same_place():
    """Breaks if one of the two resizes shifts by half a pixel or swaps the axes."""
    labels = np.zeros((30, 50), np.uint16)
    labels[6:18, 10:40] = 7
    by_label, by_mask = resize_labels(labels, 128, 128) == 7, Frame(128).mask(labels == 7)
    for axis in (0, 1):
        ours, theirs = (np.flatnonzero(m.any(axis))[[0, -1]] for m in (by_label, by_mask))
        assert np.abs(ours - theirs).max() <= 1
    assert (by_label != by_mask).mean() < 0.02


@pytest.mark.parametrize("seed", range(6))
def test_a_bent_image_and_its_labels_stay_together(seed):
    """Breaks if pixels and labels are bent differently, or the bending mirrors or loses the view."""
    labels = np.zeros((90, 120), np.uint16)
    labels[30:60, 40:80] = 60_000
    warp = random_warp(90, 120, np.random.default_rng(seed))
    bent, image = warp_labels(labels, warp), warp_image(np.repeat((labels[..., None] > 0) * np.uint8(200), 3, 2), warp)
    assert set(np.unique(bent)) == {0, 60_000}
    assert ((image[..., 0] > 100) != (bent > 0)).mean() < 0.01
    assert 0.5 < (bent > 0).sum() / (labels > 0).sum() < 2
    x = warp[0, 45, :, 0]
    assert (np.diff(x.numpy()) > 0).all()
