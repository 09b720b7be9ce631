"""lib.targets on the real model: steps, several targets, waiting steps taken along, replay to the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from imis_net.errors import ImageError, PromptError
from imis_net.networks.build import COMPACT_CATEGORIES
from imis_net.rle import apply_patch
from imis_net.segmenter import TorchSegmenter
from lib.infer import Engine
from lib.prompt_log import Event, PromptLog, TargetKey
from lib.targets import Answer, Targets

LIVER, SPLEEN = TargetKey("ann", "ct", "liver"), TargetKey("ann", "ct", "spleen")


@pytest.fixture(scope="module")
def segmenter(default_segmenter: TorchSegmenter) -> TorchSegmenter:
    return default_segmenter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ct.nii.gz"
    voxels = np.random.default_rng(0).normal(0, 200, (3, 50, 60)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), path)
    return path


@pytest.fixture
def targets(segmenter: TorchSegmenter, tmp_path: Path) -> Targets:
    return Targets(Engine(segmenter, 1 << 28), PromptLog(tmp_path / "log.sqlite"), tuple(COMPACT_CATEGORIES))


def step(targets: Targets, key: TargetKey, path: Path, kind: str = "prompt", **params: object) -> Answer:
    event = Event(kind, params)
    targets.announce(key, event)
    return targets.advance(key, event, path)


def test_undo_and_redo_give_the_same_voxels_and_patches_rebuild_them(targets: Targets, path: Path) -> None:
    """Breaks if an undo is another computation than the step before, or a patch misses a pixel."""
    shown = np.zeros((50, 60), bool)
    digests = []
    for n in range(4):
        answer = step(targets, LIVER, path, foreground=[[10 + 9 * n, 20, 1]])
        digests.append(answer.mask_digest)
        for patch in answer.changed.values():
            apply_patch(shown, patch)
    mask, _, _ = targets.read(LIVER, path)
    assert np.array_equal(mask[..., 1].T, shown)
    for n in (2, 1, 0):
        assert step(targets, LIVER, path, "undo").mask_digest == digests[n]
    for n in (1, 2, 3):
        assert step(targets, LIVER, path, "redo").mask_digest == digests[n]


def test_targets_and_users_never_change_one_another(targets: Targets, path: Path) -> None:
    """Breaks if a second target, or a second user of the same name for one, moves the first one's mask."""
    before = step(targets, LIVER, path, foreground=[[10, 20, 1]]).mask_digest
    step(targets, SPLEEN, path, foreground=[[40, 30, 1]])
    step(targets, TargetKey("bob", "ct", "liver"), path, foreground=[[50, 10, 1]])
    step(targets, SPLEEN, path, "clear")
    after, _, num_done = targets.read(LIVER, path)
    assert num_done == 1
    step(targets, LIVER, path, background=[[1, 1, 1]])
    assert step(targets, LIVER, path, "undo").mask_digest == before
    assert np.array_equal(targets.read(LIVER, path)[0], after)


def test_a_refused_step_changes_nothing_and_is_not_logged(targets: Targets, path: Path) -> None:
    """Breaks if a typing mistake spoils the target, or comes back with every replay."""
    before = step(targets, LIVER, path, foreground=[[10, 20, 1]]).mask_digest
    for bad in ({"text": "flux capacitor"}, {"foreground": [[99, 0, 0]]}, {"foreground": [[1, 1, 1]], "axis": 0}):
        with pytest.raises(PromptError):
            step(targets, LIVER, path, **bad)
    with pytest.raises(PromptError, match="nothing to redo"):
        step(targets, LIVER, path, "redo")
    assert len(targets.log.read(LIVER)) == 1
    step(targets, LIVER, path, background=[[0, 0, 1]])
    assert step(targets, LIVER, path, "undo").mask_digest == before


def test_a_superseded_step_counts_in_the_newer_answer(targets: Targets, path: Path) -> None:
    """Breaks if fast clicks are lost, or if a bad one among them takes good ones with it."""
    alone = TargetKey("solo", "ct", "liver")
    step(targets, alone, path, foreground=[[10, 20, 1]])
    wanted = step(targets, alone, path, foreground=[[30, 25, 1]]).mask_digest
    waiting = [{"foreground": [[10, 20, 1]]}, {"text": "flux capacitor"}, {"foreground": [[30, 25, 1]]}]
    events = [Event("prompt", params) for params in waiting]
    for event in events:
        targets.announce(LIVER, event)
    answer = targets.advance(LIVER, events[-1], path)
    assert (answer.mask_digest, answer.num_done) == (wanted, 2)


def test_a_step_without_an_image_is_not_taken_later(targets: Targets, path: Path, tmp_path: Path) -> None:
    """Breaks if what was answered with an error counts in the next answer."""
    lost = Event("prompt", {"foreground": [[30, 25, 1]]})
    targets.announce(LIVER, lost)
    with pytest.raises(ImageError):
        targets.advance(LIVER, lost, tmp_path / "none.nii.gz")
    targets.withdraw(LIVER, lost)
    assert step(targets, LIVER, path, foreground=[[10, 20, 1]]).num_done == 1


def test_targets_pushed_out_of_memory_come_back(targets: Targets, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if memory grows with every target ever opened, or a target forgotten there is lost."""
    monkeypatch.setattr("lib.targets.MAX_NUM_TARGETS", 2)
    keys = [TargetKey("ann", "ct", name) for name in "abcd"]
    digests = [step(targets, key, path, foreground=[[5 + 9 * n, 9, 1]]).mask_digest for n, key in enumerate(keys)]
    assert len(targets._targets) == 2
    for key, digest in zip(keys, digests, strict=True):
        step(targets, key, path, background=[[0, 0, 1]])
        assert step(targets, key, path, "undo").mask_digest == digest


def test_a_replay_gives_the_same_bits(targets: Targets, path: Path, segmenter: TorchSegmenter) -> None:
    """Breaks if a restarted server shows another mask than the one that was acknowledged."""
    for kind, params in (
        ("prompt", {"foreground": [[10, 20, 1]]}),
        ("prompt", {"box": [5, 5, 40, 40, 2]}),
        ("undo", {}),
        ("prompt", {"text": "liver", "slice": 0}),
    ):
        answer = step(targets, LIVER, path, kind, **params)
    mask, _, _ = targets.read(LIVER, path)
    again = Targets(Engine(segmenter, 1 << 28), targets.log, tuple(COMPACT_CATEGORIES))
    replayed, _, num_done = again.read(LIVER, path)
    assert num_done == 2
    assert np.array_equal(replayed, mask)
    assert step(again, LIVER, path, background=[[0, 0, 1]]).num_done == 3
    assert step(again, LIVER, path, "undo").mask_digest == answer.mask_digest
