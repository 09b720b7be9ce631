"""Propagation on volumes whose answer is known, by a segmenter that sees bright pixels inside its box."""

from __future__ import annotations

import numpy as np
import pytest

from imis_net.errors import PromptError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.propagation import Cancelled, between, propagate
from imis_net.transforms import Frame
from imis_net.volume import Volume


class Threshold:
    """A segmenter with nothing to learn: what is bright inside the box, 8 pixels of margin allowed."""

    frame = Frame(64)
    encoder_digest = "threshold"

    def encode_image(self, image: np.ndarray) -> object:
        return image

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        image = np.asarray(embedding)[..., 0]
        x0, y0, x1, y1 = prompt.box
        rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
        inside = (columns >= x0 - 8) & (columns <= x1 + 8) & (rows >= y0 - 8) & (rows <= y1 + 8)
        mask = (image > 128) & inside
        return Prediction(mask, 0.9, np.where(mask, 5.0, -5.0)[:16, :16].astype(np.float32))


def _ball(axis: int = 2) -> tuple[Volume, np.ndarray]:
    """A bright ball of 18 mm in voxels of 1 x 1 x 3 mm, the thick ones along ``axis``; its truth."""
    i, j, k = np.mgrid[:48, :40, :20]
    truth = ((i - 26) ** 2 + (j - 18) ** 2 + (3 * (k - 9)) ** 2) < 15**2
    array = np.moveaxis(np.where(truth, 220, 20).astype(np.uint8), 2, axis)
    spacing = np.insert([1.0, 1.0], axis, 3.0)
    return Volume(np.asfortranarray(array), np.diag([*spacing, 1.0])), np.moveaxis(truth, 2, axis)


def _run(volume: Volume, anchors: dict, **options: object) -> object:
    segmenter = Threshold()
    return propagate(volume, anchors, segmenter, segmenter.encode_image, **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ball_from_one_slice_of_any_axis(axis: int) -> None:
    """Breaks if an axis is mistaken, a direction is not walked, or thin slices' limits hold for thick ones."""
    volume, truth = _ball(axis)
    found = _run(volume, {9: Prompt(box=[10, 2, 42, 34])}, axis=axis)
    assert (found.mask == truth).mean() > 0.99
    assert list(found.iou_predictions) == sorted(np.flatnonzero(truth.any(tuple(a for a in range(3) if a != axis))))


def test_it_ends_where_the_target_ends() -> None:
    """Breaks if the walk goes on into what looks like the surroundings."""
    volume, truth = _ball()
    found = _run(volume, {9: Prompt(box=[10, 2, 42, 34])})
    assert not found.mask[..., ~truth.any((0, 1))].any()


def test_it_ends_between_two_targets_that_touch() -> None:
    """Breaks if a target is followed on into the next one where they meet without a gap: only contrast tells."""
    i, j, k = np.mgrid[:48, :40, :24]
    faintness = 12 * np.abs(np.minimum(k, 23 - k) - 5)  # of two columns, brightest at slices 5 and 18
    array = np.where((i - 26) ** 2 + (j - 18) ** 2 < 12**2, 220 - faintness, 20).astype(np.uint8)
    volume = Volume(np.asfortranarray(array), np.diag([1.0, 1.0, 3.0, 1.0]))
    found = _run(volume, {5: Prompt(box=[13, 5, 39, 31])}).mask.any((0, 1))
    assert found[:11].all()
    assert not found[12:].any()


def test_two_anchors_tell_where_a_target_that_tapers_off_ends() -> None:
    """Breaks if a target is followed on into one behind it that looks just the same, or cut before its waist."""
    i, j, k = np.mgrid[:48, :40, :24]
    radius = 5 + np.abs(k - 12)  # an hourglass of one brightness, its waist at slice 12
    array = np.where((i - 26) ** 2 + (j - 18) ** 2 < radius**2, 220, 20).astype(np.uint8)
    volume = Volume(np.asfortranarray(array), np.diag([1.0, 1.0, 3.0, 1.0]))
    anchors = {5: Prompt(box=[13, 5, 39, 31]), 8: Prompt(box=[17, 9, 35, 27])}
    found = _run(volume, anchors).mask.any((0, 1))
    assert found[:13].all()
    assert not found[14:].any()
    assert _run(volume, {8: anchors[8]}).mask.any((0, 1)).all(), "one anchor does not say what is the target's whole"


def test_between_two_anchors_each_slice_is_prompted() -> None:
    """Breaks if anchors are not honoured, or a slice between them is left out."""
    volume, truth = _ball()
    found = _run(volume, {6: Prompt(box=[10, 2, 42, 34]), 12: Prompt(box=[10, 2, 42, 34])})
    assert (found.mask[..., 6:13] == truth[..., 6:13]).all()


def test_a_shape_half_way_lies_half_way() -> None:
    """Breaks if two masks that do not overlap leave nothing between them."""
    before, after = np.zeros((2, 20, 40), bool)
    before[8:12, 4:8] = after[8:12, 30:34] = True
    shape = between(before, after, 0.5, (1.0, 1.0)) > 0
    assert shape[8:12, 17:21].all()
    assert shape.sum() == 16


def test_cancel_and_progress() -> None:
    """Breaks if a user who stops it has to wait for the end."""
    volume, _ = _ball()
    seen: list[int] = []
    with pytest.raises(Cancelled):
        _run(
            volume,
            {9: Prompt(box=[10, 2, 42, 34])},
            on_progress=lambda done, total: seen.append(done),
            is_cancelled=lambda: len(seen) >= 3,
        )
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("anchors", [{}, {20: Prompt(box=[1, 1, 5, 5])}, {-1: Prompt(box=[1, 1, 5, 5])}])
def test_bad_anchors_are_refused(anchors: dict) -> None:
    """Breaks if a slice that is not there wraps round to the other end."""
    with pytest.raises(PromptError):
        _run(_ball()[0], anchors)
