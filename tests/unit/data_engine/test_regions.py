"""Boxes, parts, holes and overlaps of masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import measure

from imis_net.data_engine import regions

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def drawn(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def test_a_box_has_its_corners_inside() -> None:
    """Breaks if x and y are swapped, or if the far corner lies one pixel outside as slices have it."""
    assert regions.bounding_box(drawn("......", "..###.", "...#..")) == (2, 1, 4, 2)


def test_box_iou_counts_whole_pixels() -> None:
    """Breaks if a box's width is x1 - x0, which makes single pixels vanish."""
    assert regions.box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 1
    assert regions.box_iou((0, 0, 3, 1), (2, 0, 5, 1)) == pytest.approx(4 / 12)
    assert regions.box_iou((0, 0, 1, 3), (0, 2, 1, 5)) == pytest.approx(4 / 12)
    assert regions.box_iou((0, 0, 1, 1), (2, 0, 3, 1)) == 0
    assert regions.box_iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0, "two negative sides are no overlap"


def test_mask_iou() -> None:
    """Breaks if the union counts the shared pixels twice."""
    assert regions.mask_iou(drawn("##.."), drawn(".##.")) == pytest.approx(1 / 3)


def test_parts_that_touch_by_a_corner_are_one() -> None:
    """Breaks if parts are split along diagonals: a slanted vessel would count as many."""
    assert regions.count_parts(drawn("#..", ".#.", "..#")) == 1
    assert regions.count_parts(drawn("#.#")) == 2
    assert regions.count_parts(drawn("...")) == 0


def test_specks_below_the_bound_go() -> None:
    """Breaks if a part of exactly the bound goes, or a smaller one stays."""
    cleaned, num_px = regions.without_specks(drawn("##..#", ".....", "###.#"), 2)
    assert (cleaned == drawn("##...", ".....", "###..")).all()
    assert num_px == 2


def test_holes_below_the_bound_are_filled() -> None:
    """Breaks if a hole of exactly the bound is filled, background at the border is, or a diagonal gap opens a hole."""
    mask = drawn("#######", "#.##..#", "#######", "....###")
    filled, num_px = regions.without_holes(mask, 2)
    assert (filled == drawn("#######", "####..#", "#######", "....###")).all()
    assert num_px == 1
    assert regions.without_holes(drawn(".#.", "#.#", ".#."), 2)[1] == 1
    for side in range(4):
        open_side = np.rot90(drawn("#.#", "###", "###"), side)
        assert regions.without_holes(open_side, 5)[1] == 0, "a notch at any of the four borders is outside"


def test_suppression_is_greedy_and_tells_by_whom() -> None:
    """Breaks if a suppressed mask suppresses others, an equal overlap suppresses, or a later one wins."""
    ious = np.array([[1, 0.8, 0.1, 0.7], [0.8, 1, 0.9, 0.1], [0.1, 0.9, 1, 0.1], [0.7, 0.1, 0.1, 1]])
    assert regions.suppressed_by(ious, 0.7).tolist() == [-1, 0, -1, -1]


def test_the_first_that_suppresses_is_named() -> None:
    """Breaks if a later survivor takes over a mask that is out already: the reported number would be another's."""
    ious = np.array([[1, 0.1, 0.8], [0.1, 1, 0.9], [0.8, 0.9, 1]])
    assert regions.suppressed_by(ious, 0.7).tolist() == [-1, -1, 0]


def test_no_masks_have_no_overlaps() -> None:
    """Breaks if an image without candidates crashes a run."""
    assert regions.pairwise_mask_iou([]).shape == (0, 0)
    assert regions.pairwise_box_iou([]).shape == (0, 0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pairwise_equals_one_by_one(data: st.DataObject) -> None:
    """Breaks if the matrix form and the definition drift apart."""
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    masks = [m for m in data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=4)) if m.any()]
    boxes = [regions.bounding_box(m) for m in masks]
    by_mask, by_box = regions.pairwise_mask_iou(masks), regions.pairwise_box_iou(boxes)
    for i in range(len(masks)):
        for j in range(len(masks)):
            assert by_mask[i, j] == pytest.approx(regions.mask_iou(masks[i], masks[j]))
            assert by_box[i, j] == pytest.approx(regions.box_iou(boxes[i], boxes[j]))


@settings(max_examples=300, deadline=None)
@given(MASKS, st.integers(0, 20))
def test_specks_and_holes_agree_with_scikit_image(mask: np.ndarray, bound: int) -> None:
    """Breaks if connectivity differs from the field's: 8 for parts, 4 for background."""
    kept = np.zeros_like(mask)
    parts = measure.label(mask, connectivity=2)
    for part in measure.regionprops(parts):
        kept |= (parts == part.label) & (part.area >= bound)
    assert (regions.without_specks(mask, bound)[0] == kept).all()
    filled, num_px = regions.without_holes(mask, bound)
    assert (filled & ~mask).sum() == num_px
    assert not (mask & ~filled).any()
    holes = measure.label(~np.pad(filled, 1), connectivity=1)
    outside = holes[0, 0]
    for hole in measure.regionprops(holes):
        assert hole.label == outside or hole.area >= bound
