"""The evaluation protocol and the floors."""

from dataclasses import replace

import numpy as np
import pytest

from imis_net.errors import PromptError
from imis_net.evaluation.floors import EllipseFloor, RectangleFloor
from imis_net.evaluation.harness import evaluate, mean_dice
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.training.dataset import Record


def disk_record() -> Record:
    y, x = np.mgrid[:80, :100]
    labels = ((x - 50) ** 2 + (y - 40) ** 2 <= 20**2).astype(np.uint16)
    return Record("disk", "p", "s", "CT", np.zeros((80, 100, 3), np.uint8), ((labels, {1: "liver"}),))


def test_floors_fill_the_box():
    """Breaks if the ellipse misses its box's centre line or corners, so that the floor under every table sinks."""
    prompt = Prompt(box=np.array([30, 20, 70, 60]))
    for floor, corner in ((EllipseFloor(), False), (RectangleFloor(), True)):
        mask = floor.predict(floor.encode_image(np.zeros((80, 100, 3), np.uint8)), prompt).mask
        assert mask[40, 30]
        assert mask[40, 70]
        assert mask[20, 30] == corner
        assert not mask[40, 72]
    with pytest.raises(PromptError, match="needs a box"):
        floor.predict(floor.encode_image(np.zeros((8, 8, 3), np.uint8)), Prompt(text="liver"))


def test_ellipse_is_nearly_right_on_a_disk_and_scores_repeat():
    """Breaks if scores depend on anything but the seed, or the box's jitter is lost."""
    first, second, other = (
        [replace(s, milliseconds=0) for s in evaluate(EllipseFloor(), [disk_record()], "box", seed=seed)]
        for seed in (0, 0, 1)
    )
    assert first == second
    (quick,) = evaluate(EllipseFloor(), [disk_record()], "box", with_surface=False)
    assert quick.dice == first[0].dice
    assert np.isnan(quick.nsd)
    assert first != other
    assert 0.8 < mean_dice(first) < 1


class Painter:
    """Answers with exactly the foreground clicks' pixels; counts how often it encodes."""

    image_size, encoder_digest, known_texts = 512, "painter", ()

    def __init__(self):
        self.num_encoded = 0
        self.prompts = []

    def encode_image(self, image):
        self.num_encoded += 1
        return ImageEmbedding((), image.shape[:2], self.encoder_digest)

    def predict(self, embedding, prompt):
        self.prompts.append(prompt)
        mask = np.zeros(embedding.original_size, bool)
        for (x, y), label in zip(prompt.point_coords.astype(int), prompt.point_labels, strict=True):
            mask[y, x] = label == 1
        return Prediction(mask, 0.5, np.zeros((128, 128), np.float32))


def test_rounds_add_clicks_where_the_mask_is_wrong():
    """Breaks if corrections fall on what is right, earlier clicks are forgotten, or an image is encoded twice."""
    painter = Painter()
    scores = list(evaluate(painter, [disk_record()], "click", num_rounds=3))
    assert painter.num_encoded == 1
    assert [p.num_clicks for p in painter.prompts] == [1, 2, 3, 4]
    assert [s.round for s in scores] == [0, 1, 2, 3]
    assert len(np.unique(painter.prompts[-1].point_coords, axis=0)) == 4
    assert scores[3].dice > scores[0].dice


def test_a_correction_may_be_its_click_and_the_last_mask_alone():
    """Breaks if networks that learnt so are scored by prompts they never saw."""
    painter = Painter()
    list(evaluate(painter, [disk_record()], "click", num_rounds=2, use_previous_mask=True, keep_clicks=False))
    assert [p.num_clicks for p in painter.prompts] == [1, 1, 1]
    assert [p.low_res_mask is None for p in painter.prompts] == [True, False, False]


def test_targets_without_a_known_name_are_left_out_of_text():
    """Breaks if a segmenter is marked down for words it never claimed to know."""
    assert list(evaluate(Painter(), [disk_record()], "text")) == []
