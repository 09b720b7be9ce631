"""The paper's examples and their order."""

import logging

import numpy as np
import pytest

from imis_net.errors import DatasetError
from imis_net.training.dataset import Record
from imis_net.training.epoch_sampler import EpochSampler
from imis_net.transforms import Frame


def record(case: str, with_regions: bool = True) -> Record:
    labels = np.zeros((64, 64), np.uint16)
    labels[10:40, 10:50] = 1
    labels[45:60, 10:50] = 2
    image = np.where(labels[..., None] > 0, 200, 20).repeat(3, axis=2).astype(np.uint8)
    regions = np.zeros((64, 64), np.uint16)
    regions[20:30, 20:30] = 7
    regions[50, 50] = 9  # a speck
    return Record(
        case,
        case,
        "a set",
        "CT",
        image,
        ((labels, {1: "liver", 2: "kidney right"}),),
        (),
        regions if with_regions else None,
    )


class Breaking(list):
    """Records of which the second cannot be read."""

    def __getitem__(self, index):
        if index == 1:
            raise DatasetError("image/b.png: cannot be read")
        return super().__getitem__(index)


def sampler(records=None, **changes) -> EpochSampler:
    return EpochSampler(records or [record(c) for c in "abcde"], **{"frame": Frame(64), **changes})


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_each_epoch_has_every_image_once_in_another_order():
    """Breaks if an image is drawn at random instead, or epochs repeat one order."""
    drawn = sampler()
    epochs = [[drawn.index_at(5 * e + i) for i in range(5)] for e in range(4)]
    assert all(sorted(e) == list(range(5)) for e in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert epochs[2] == [sampler().index_at(10 + i) for i in range(5)]


def test_five_targets_with_names_and_five_interactive_masks():
    """Breaks if few targets are not repeated, interactive masks get names, or their specks become targets."""
    targets, interactive = sampler().draw_at(0, rng())
    assert targets.targets.shape == interactive.targets.shape == (5, 64, 64)
    assert set(targets.texts) == {"liver", "right kidney"}
    assert interactive.texts is None
    assert interactive.targets[:, 20:30, 20:30].any((1, 2)).all()
    assert not interactive.targets[:, 50, 50].any()
    assert targets.image is interactive.image


def test_regions_stand_in_for_interactive_masks():
    """Breaks if data without dense masks is trained on without any unnamed target."""
    _, interactive = sampler([record("a", with_regions=False)]).draw_at(0, rng())
    assert interactive.targets.any((1, 2)).all()


def test_intensity_changes_now_and_then_by_a_fifth():
    """Breaks if scale and shift come always, never, or on another scale than the normalised one."""
    drawn = sampler([record("a")])
    plain = sampler([record("a")], intensity_probability=0.0).draw_at(0, rng())[0].image
    differences = [np.abs(drawn.draw_at(0, np.random.default_rng(i))[0].image - plain).max() / 58 for i in range(200)]
    changed = np.mean([d > 1e-3 for d in differences])
    assert changed == pytest.approx(1 - 0.8**2, abs=0.1)
    assert 0.2 < max(differences) < 0.2 + 0.2 * 2.1 + 0.1


def test_broken_images_are_skipped_by_count_and_named(caplog):
    """Breaks if a broken image ends the run, or another takes its place in silence."""
    drawn = sampler(Breaking([record("a"), record("b"), record("c")]))
    with caplog.at_level(logging.WARNING):
        found = [drawn.draw_at(i, rng()) for i in range(6)]
    assert [len(f) for f in found].count(0) == 2
    assert drawn.num_skipped == 2
    assert "image/b.png" in caplog.text


def test_unknown_names_give_no_text():
    """Breaks if a table of names is asked for one that it has not."""
    targets, _ = sampler(known_texts=("liver",)).draw_at(0, rng())
    assert targets.texts is None


def test_nothing_to_learn_from_is_refused():
    """Breaks if an empty data set divides by zero."""
    with pytest.raises(DatasetError, match="nothing to learn from"):
        EpochSampler([], Frame(64)).check()
    with pytest.raises(DatasetError, match="expected a multiple of 16, got 100"):
        sampler(frame=Frame(100)).check()
