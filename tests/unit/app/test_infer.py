"""lib.infer on the real network with random weights: grids, caches, label values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from imis_net import stepwise
from imis_net.images import read_volume
from imis_net.networks.build import COMPACT_CATEGORIES, COMPACT_TAUGHT_ABSENT, imis_net_compact
from imis_net.prompts import Prediction, Prompt
from imis_net.segmenter import TorchSegmenter
from lib.infer import Engine, InteractiveTask, TextTask, _painted
from lib.request import Target


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    return Engine(TorchSegmenter(imis_net_compact()), 200_000_000)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 x 50 x 4 voxels (i, j, k) of noise, 8 bit."""
    path = tmp_path_factory.mktemp("volume") / "v.nii.gz"
    array = np.random.default_rng(0).integers(0, 255, (4, 50, 60), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), path)
    return path


def _segment(task: InteractiveTask | TextTask, image: Path, **params: object) -> tuple[np.ndarray, dict]:
    file, report = task({"image": str(image), **params})
    mask = sitk.GetArrayFromImage(sitk.ReadImage(file))
    Path(file).unlink()
    return mask, report


def test_a_mask_lands_on_the_clicked_slice_of_any_axis(engine: Engine, volume: Path) -> None:
    """Breaks when the plane is painted transposed or on another slice. Array order is k, j, i."""
    task = InteractiveTask(engine, COMPACT_CATEGORIES)
    for axis, kept in ((2, np.s_[1]), (1, np.s_[:, 20]), (0, np.s_[:, :, 33])):
        mask, report = _segment(task, volume, foreground=[[33, 20, 1]], axis=axis)
        assert mask.shape == (4, 50, 60)
        assert report["axis"] == axis
        inside = mask[kept].copy()
        mask[kept] = 0
        assert not mask.any()
        assert inside.size > 0


def test_only_what_the_encoder_sees_decides_about_encoding(engine: Engine, volume: Path) -> None:
    """Breaks when another prompt encodes again, or another slice or window is served a stale embedding."""
    task = InteractiveTask(engine, COMPACT_CATEGORIES)
    _, first = _segment(task, volume, foreground=[[3, 2, 3]])
    _, again = _segment(task, volume, text="liver", slice=3)
    _, slice_ = _segment(task, volume, foreground=[[3, 2, 2]])
    _, window = _segment(task, volume, foreground=[[3, 2, 3]], window="100,50")
    assert [r["cache_hit"] for r in (first, again, slice_, window)] == [False, True, False, False]


def test_classes_come_back_at_their_index_whatever_the_spelling(engine: Engine, volume: Path) -> None:
    """Breaks when OHIF, which matches voxels with /info/ labels, would colour another organ."""
    task = TextTask(engine, COMPACT_CATEGORIES, min_iou=0.0)
    index = COMPACT_CATEGORIES.index("aorta") + 1
    mask, report = _segment(task, volume, text="Aorta", slice=0)
    assert task.info()["labels"]["aorta"] == report["label_names"]["aorta"] == index
    assert set(np.unique(mask)) <= {0, index}


def test_a_guessed_category_needs_confidence(engine: Engine, volume: Path) -> None:
    """Breaks when the automatic run paints organs that the network itself does not believe in, or of which it never
    learnt where they are not."""
    assert set(TextTask(engine, COMPACT_CATEGORIES, min_iou=0.0).guessed) == set(COMPACT_TAUGHT_ABSENT)
    assert TextTask(engine, ["Brain"], min_iou=0.0).guessed == ["Brain"], "whoever offers nothing else wants it tried"
    mask, report = _segment(TextTask(engine, COMPACT_CATEGORIES, min_iou=1.0), volume)
    assert not mask.any()
    assert report["iou_predictions"] == []


def test_a_click_builds_on_the_mask_of_those_before_it(engine: Engine, volume: Path, monkeypatch) -> None:
    """Breaks when a further click is asked without the mask before it, or otherwise for whoever asks it cold."""
    monkeypatch.setattr(stepwise, "MIN_FED_BACK", 0.0)
    first, second = [[3, 2, 3]], [[3, 2, 3], [40, 30, 3]]
    alone = Engine(engine.segmenter, 10**7, previous_mask=False)
    answers = []
    for own in (engine, Engine(engine.segmenter, 10**7), alone):
        task = InteractiveTask(own, COMPACT_CATEGORIES)
        if own is engine:
            _segment(task, volume, foreground=first)
        answers.append(_segment(task, volume, foreground=second)[1]["iou_prediction"])
    warm, cold, without = answers
    assert warm == cold != without


def test_where_masks_overlap_the_surer_one_wins(volume: Path) -> None:
    """Breaks when the order of labels decides about shared pixels."""
    everywhere = np.ones((50, 60), bool)
    low_res = np.zeros((4, 4), np.float32)
    target = Target("a", 1, Prompt(text="a")), Target("b", 1, Prompt(text="b"))
    answers = [(target[0], Prediction(everywhere, 0.9, low_res)), (target[1], Prediction(everywhere, 0.3, low_res))]
    mask = _painted(read_volume(volume), 2, answers, {"a": 1, "b": 2})
    assert (mask[:, :, 1] == 1).all()
    assert not mask[:, :, [0, 2, 3]].any()
