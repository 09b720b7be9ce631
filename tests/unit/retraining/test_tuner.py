"""The network behind a retraining: trunk features are kept, and what need not change does not."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imis_net.checkpoint import save_weights
from imis_net.embedding_disk import EmbeddingDisk
from imis_net.networks.build import imis_net_compact
from imis_net.retraining.cycle import Outcome
from imis_net.retraining.gate import TargetVerdict, Verdict
from imis_net.retraining.label_checks import Finding
from imis_net.retraining.run_report import render, worst_records
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import load_segmenter, trunk_digest
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuned, FineTuning, Progress

SIDE = 64


def record(patient: str) -> Record:
    label = np.zeros((50, 60), np.uint16)
    label[10:30, 10 : 30 + int(patient)] = 1
    image = np.where(label[..., None] > 0, 200, 20).repeat(3, axis=2).astype(np.uint8)
    return Record(f"case {patient}", patient, "a set", "CT", image, ((label, {1: "liver"}),))


def weights(path, seed: int = 0):
    torch.manual_seed(seed)
    save_weights(imis_net_compact(SIDE), path, {}, half=True)
    return path


def tuner(folder, **settings) -> Tuner:
    few = FineTuning(**{"max_steps": 2, "validate_every": 2, **settings})
    return Tuner("imis_net_compact", EmbeddingDisk(folder, 10**8), few, {"image_size": SIDE})


def test_a_second_run_encodes_nothing(tmp_path):
    """Breaks if retraining pays for the trunk every night, or another trunk is given these features."""
    start, draft = weights(tmp_path / "start.safetensors"), tmp_path / "draft.safetensors"
    records = [record(str(n)) for n in range(4)]
    first = tuner(tmp_path / "trunk", max_steps=6)  # enough to draw both
    first.train(start, records[:2], records[2:3], draft)
    scores = first.answers(draft, records[3:])
    assert first.num_encoded == 4
    again = tuner(tmp_path / "trunk", max_steps=6)
    again.train(start, records[:2], records[2:3], tmp_path / "other.safetensors")
    assert [s.dice for s in again.answers(draft, records[3:])] == [s.dice for s in scores]
    assert again.num_encoded == 0
    again.answers(weights(tmp_path / "stranger.safetensors", 1), records[3:])
    assert again.num_encoded == 1


@pytest.mark.parametrize("learn_neck", [True, False])
def test_without_the_neck_every_kept_embedding_stays_valid(tmp_path, learn_neck):
    """Breaks if decoder-only retraining makes the server encode all its images again, or changes nothing at all."""
    start, draft = weights(tmp_path / "start.safetensors"), tmp_path / "draft.safetensors"
    made = tuner(tmp_path / "trunk", learn_neck=learn_neck, learning_rate=0.1)
    tuned = made.train(start, [record("1"), record("2")], [record("3")], draft)
    before, after = (load_segmenter("imis_net_compact", path, image_size=SIDE) for path in (start, draft))
    if learn_neck is False:
        assert before.encoder_digest == after.encoder_digest
    if tuned.best_dice > tuned.start_dice:
        assert before.weights_digest != after.weights_digest
        assert (before.encoder_digest == after.encoder_digest) is not learn_neck


def test_adapters_make_a_candidate_of_the_plain_layout_with_another_trunk(tmp_path, caplog):
    """Breaks if kept features of the old trunk are used for the new one, a candidate needs adapters to be loaded, or
    Triton's trunk is trained upon in silence."""
    start, draft = weights(tmp_path / "start.safetensors"), tmp_path / "draft.safetensors"
    made = tuner(tmp_path / "trunk", adapter_rank=4, learning_rate=0.1)
    made.trunk_url = "127.0.0.1:9"
    tuned = made.train(start, [record("1"), record("2")], [record("3")], draft)
    assert "it runs in this process, not on Triton" in caplog.text
    assert tuned.best_dice > tuned.start_dice
    assert made.num_encoded == 0
    assert shapes(draft) == shapes(start)
    before, after = (load_segmenter("imis_net_compact", path, image_size=SIDE) for path in (start, draft))
    assert trunk_digest(before.network) != trunk_digest(after.network)
    assert before.encoder_digest != after.encoder_digest
    made.trunk_url = ""
    made.answers(start, [record("4")])
    made.answers(draft, [record("4")])
    assert made.num_encoded == 2


def shapes(path) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {key: (value.dtype, value.shape) for key, value in load_file(path).items()}


def test_the_report_shows_what_was_set_aside_and_hides_no_markup():
    """Breaks if a label's reason or picture is missing, or a case's name can write into the page."""
    bad = record("1")
    findings = (Finding("case 1", "empty", "no pixel is labelled"), Finding("<script>", "size", "of 3 < 4 pixels"))
    tuned = FineTuned(0.5, 0.625, 10, 3.0, "steps")
    outcome = Outcome("kept", "may be worse", "ab" * 32, tuned=tuned, findings=findings, num_slices={"training": 7})
    page = render(outcome, [Progress(1, 0.5, 3.0, 1.0, (0.4,), 0.5)], {"case 1": bad})
    for shown in (
        "no pixel is labelled",
        "0.500 to 0.625",
        "training slices",
        "data:image/png;base64",
        "&lt;script&gt;",
    ):
        assert shown in page
    assert "<script>" not in page
    assert page.count("<figure>") == 2
    assert page.count("<img") == 2  # the curve and the one picture


def test_the_report_shows_the_worst_cases():
    """Breaks if a case has no picture or no Dice before and after, or one whose label is gone ends the report."""
    worst = (TargetVerdict("case 1", 0, "liver", 0.75, 0.25), TargetVerdict("case 2", 0, "", 0.5, 0.375))
    outcome = Outcome("kept", "may be worse", verdict=Verdict(False, "may be worse", (), worst))
    pictured = {"case 1": record("1"), "case 3": record("3")}
    page = render(outcome, [], pictured)
    assert "case 1: liver: 0.750 before, 0.250 by the candidate" in page
    assert "case 2: no name: 0.500 before, 0.375" in page
    assert page.count("<img") == 1
    assert [r.case for r in worst_records(outcome, pictured)] == ["case 1"]


def test_a_worst_case_stands_beside_what_both_models_answered(tmp_path):
    """Breaks if people cannot see what went wrong, or see the answer to another target or of another model."""
    judged = record("9")
    made = tuner(tmp_path / "trunk")
    masks = made.box_masks(weights(tmp_path / "start.safetensors"), [judged])
    assert list(masks) == [("case 9", 0)]
    assert masks["case 9", 0].shape == judged.image.shape[:2]
    worst = (TargetVerdict("case 9", 0, "liver", 0.75, 0.25),)
    outcome = Outcome("kept", "may be worse", verdict=Verdict(False, "may be worse", (), worst))
    left, right = (np.zeros((50, 60), bool) for _ in range(2))
    left[:, :20], right[:, 40:] = True, True
    page = render(outcome, [], {"case 9": judged}, ({("case 9", 0): left}, {("case 9", 0): right}))
    png = base64.b64decode(re.search('base64,([^"]+)', page)[1])
    panels = np.split(np.asarray(Image.open(io.BytesIO(png))).astype(int), 3, axis=1)
    colours = [panel[..., 0] - panel[..., 2] for panel in panels]  # the masks are amber, the image grey
    shares = [[bool((part > 20).mean() > 0.5) for part in np.array_split(c, 3, axis=1)] for c in colours]
    assert shares[1:] == [[True, False, False], [False, False, True]]
