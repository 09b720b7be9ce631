"""What a training step reads: images by their place in the data order, ready to share decoder calls."""

import numpy as np
import torch

from imis_net.training.batches import Batch, read_batches
from imis_net.training.dataset import Record
from imis_net.training.epoch_sampler import EpochSampler
from imis_net.training.sampler import Example, Sampler
from imis_net.transforms import Frame

SIDE = 64


def record(number: int, with_target: bool = True) -> Record:
    rng = np.random.default_rng(number)
    label_map = np.zeros((SIDE, SIDE), np.uint16)
    label_map[8:40, 8 + number : 40] = with_target
    image = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Record(str(number), str(number), "BTCV", "CT", image, ((label_map, {1: "liver"}),))


def example(number: int, num_targets: int, texts: tuple[str, ...] | None = None) -> Example:
    targets = np.zeros((num_targets, SIDE, SIDE), bool)
    targets[:, number, : 1 + number] = True
    return Example(np.full((SIDE, SIDE, 3), number, np.uint8), targets, texts, (float(number), 1.0))


def test_targets_stay_with_their_image() -> None:
    """Breaks if an image that was skipped moves the targets after it to another image."""
    batch = Batch.of([(4, [example(1, 2)]), (5, []), (6, [example(2, 1), example(2, 3)])])
    assert batch is not None
    assert batch.positions == [4, 6]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 2]
    for e, image in zip(batch.examples, (0, 1, 1), strict=True):
        number = int(batch.images[image, 0, 0, 0])
        assert e.image == image
        assert e.pixel_size == (number, 1.0)
        assert batch.targets[e.rows].flatten(1).sum(1).tolist() == [number + 1] * e.number
    assert [1 / e.share for e in batch.examples] == [1, 2, 2]


def test_nothing_left_is_no_batch() -> None:
    """Breaks if a step whose images were all skipped fails on an empty array."""
    assert Batch.of([(0, []), (1, [])]) is None


def test_only_what_fits_shares_a_call() -> None:
    """Breaks if named and unnamed targets, or different numbers of them, meet in a call, or it grows too large."""
    examples = [example(1, 2, ("liver", "spleen")), example(2, 2), example(3, 2), example(4, 1), example(5, 2)]
    batch = Batch.of([(i, [e]) for i, e in enumerate(examples)])
    assert batch is not None
    assert [[e.image for e in call] for call in batch.calls(2)] == [[1, 2], [0], [4], [3]]


def test_reading_processes_change_nothing() -> None:
    """Breaks if what is drawn depends on who draws it, or steps come out of order."""
    sampler = Sampler([record(i) for i in range(3)], SIDE, 2, known_texts=("liver",), warp_probability=0.5)
    steps = [[0, 1], [2, 3], [4, 5]]
    alone, ahead = (list(read_batches(sampler, [7], steps, num_workers)) for num_workers in (0, 2))
    assert [b.positions for b in ahead if b] == steps
    for ours, theirs in zip(alone, ahead, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.examples == theirs.examples


def test_an_image_without_target_is_skipped() -> None:
    """Breaks if a broken record ends the training, or another takes its place."""
    sampler = EpochSampler([record(0), record(1, with_target=False)], Frame(SIDE))
    (batch,) = read_batches(sampler, [7], [[0, 1]], 0)
    assert batch is not None
    assert len(batch.positions) == 1
    assert sampler.num_skipped == 1
