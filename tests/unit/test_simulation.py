"""The simulated annotator."""

import numpy as np
import pytest
import torch

from imis_net.errors import PromptError
from imis_net.simulation import (
    boxes_around,
    clicks_within,
    correction_click,
    correction_clicks,
    jittered_box,
    random_click,
)


@pytest.fixture
def mask():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:55] = True
    return mask


def test_clicks_lie_in_the_target(mask):
    """Breaks if x and y are swapped."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = random_click(mask, rng).astype(int)
        assert mask[y, x]


def test_central_clicks_are_nearer(mask):
    """Breaks if closest_fraction is ignored or keeps the farthest."""
    rng, centre = np.random.default_rng(0), np.array([42, 14.5])
    near = max(np.linalg.norm(random_click(mask, rng, 0.1) - centre) for _ in range(50))
    assert near < 6


def test_a_single_pixel_is_clicked():
    """Breaks as the reference does: half of one pixel is none, and its click fell on the background."""
    mask = np.zeros((5, 5), bool)
    mask[3, 1] = True
    assert random_click(mask, np.random.default_rng(0), 0.5).tolist() == [1, 3]


def test_boxes_move_by_at_most_the_offset_and_stay_inside(mask):
    """Breaks if a side leaves the image or moves too far."""
    rng = np.random.default_rng(0)
    boxes = np.array([jittered_box(mask, rng, 5) for _ in range(200)])
    assert (np.abs(boxes - [30, 10, 54, 19]) <= 5).all()
    assert np.ptp(boxes, axis=0).min() == 10 or boxes[:, 2].max() == 59
    assert (boxes[:, [0, 1]] >= 0).all()
    assert (boxes[:, [2, 3]] <= [59, 39]).all()


def test_jitter_counts_in_the_annotators_pixels(mask):
    """Breaks if a coarse image, enlarged, is prompted more precisely than people could."""
    rng = np.random.default_rng(0)
    boxes = np.array([jittered_box(mask, rng, 2, (3.0, 1.5)) for _ in range(300)])
    assert sorted({abs(x - 30) for x in boxes[:, 0]}) == [0, 3, 6]
    assert sorted({abs(y - 10) for y in boxes[:, 1]}) == [0, 1.5, 3]


def test_jitter_cannot_make_a_small_box_vanish():
    """Breaks if a target smaller than its jitter gets a box of no area."""
    mask = np.zeros((20, 20), bool)
    mask[19, 19] = True
    rng = np.random.default_rng(0)
    for _ in range(100):
        x0, y0, x1, y1 = jittered_box(mask, rng, 5)
        assert 0 <= x0 < x1 <= 19
        assert 0 <= y0 < y1 <= 19


@pytest.mark.parametrize("draw", [random_click, jittered_box])
def test_empty_masks_are_refused(draw):
    """Breaks if an empty target crashes deep inside numpy."""
    with pytest.raises(PromptError, match="empty mask"):
        draw(np.zeros((4, 4), bool), np.random.default_rng(0))


def test_corrections_say_what_is_wrong(mask):
    """Breaks if missed target gets a background click or the reverse."""
    rng = np.random.default_rng(0)
    (x, y), label = correction_click(np.zeros_like(mask), mask, rng)
    assert label == 1
    assert mask[int(y), int(x)]
    (x, y), label = correction_click(np.ones_like(mask), mask, rng)
    assert label == 0
    assert not mask[int(y), int(x)]
    assert correction_click(mask, mask, rng) is None


def test_same_generator_same_annotator(mask):
    """Breaks if some randomness does not come from the generator: no score could be repeated."""
    first, second = (
        [random_click(mask, rng).tolist(), jittered_box(mask, rng).tolist(), correction_click(~mask, mask, rng)[1]]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first == second


def test_shares_reach_every_pixel_once(mask):
    """Breaks if some pixels of a target can never be clicked, or some twice as often."""
    masks = torch.from_numpy(np.stack([mask, mask.T.copy().reshape(mask.shape)]))
    for one in masks:
        count = int(one.sum())
        shares = (torch.arange(count) + 0.5) / count
        x, y = clicks_within(one.expand(count, -1, -1), shares).long().unbind(1)
        assert torch.equal(torch.zeros_like(one).index_put((y, x), torch.tensor(True)), one)
    assert clicks_within(masks[:1], torch.tensor([0.99999997])).tolist() == [[54, 19]]


def test_each_mask_gets_its_own_answer(mask):
    """Breaks if masks of a batch are mixed up, or a target without error gets no click."""
    masks = torch.from_numpy(np.stack([mask, np.roll(mask, (7, -20), (0, 1))]))
    offsets = torch.tensor([[0.0] * 4, [-1, 2, 3, -2]])
    assert boxes_around(masks, offsets).tolist() == [[30, 10, 54, 19], [9, 19, 37, 24]]
    clicks, kinds = correction_clicks(torch.stack([masks[0], masks[0]]), masks, torch.tensor([0.0, 0.0]))
    assert clicks.tolist() == [[30, 10], [30, 10]]
    assert kinds.tolist() == [1, 0]
