"""Validation during training."""

import numpy as np
import pytest

from imis_net.errors import DatasetError
from imis_net.evaluation.floors import EllipseFloor
from imis_net.training.dataset import Record
from imis_net.training.distributed import World
from imis_net.training.validation import Protocol, read_protocol, readable


def record(case: str, size: int = 20) -> Record:
    labels = np.zeros((64, 64), np.uint16)
    labels[10 : 10 + size, 10 : 10 + size] = 1
    return Record(case, case, "a set", "CT", np.zeros((64, 64, 3), np.uint8), ((labels, {1: "liver"}),))


def test_scores_are_means_by_strategy_and_round():
    """Breaks if rounds or strategies are mixed up, or a strategy that nothing can answer makes a NaN."""
    protocol = Protocol(("box", "text"), num_rounds=1, chosen_by=("box",))
    scores = protocol.scores(EllipseFloor(), [record("a"), record("b", 30)], World())
    assert set(scores) <= {"box", "box_1"}
    assert 0.5 < scores["box"] < 1
    assert protocol.choice(scores) == pytest.approx(np.mean(list(scores.values())))


def test_shares_of_processes_make_the_whole():
    """Breaks if a record is scored by two processes or by none."""
    parts = [World(rank, 3).mine("abcdefgh") for rank in range(3)]
    assert sorted("".join(map("".join, parts))) == list("abcdefgh")


def test_config_and_code_agree():
    """Breaks if evaluate.yaml holds a value that the protocol does not know, or chooses by what it does not score."""
    protocol = read_protocol()
    assert set(protocol.chosen_by) <= set(protocol.strategies)
    assert protocol.num_rounds == 3


def test_unreadable_and_empty_records():
    """Breaks if a broken validation image ends a training of days, or nothing is validated in silence."""

    class Broken(list):
        def __getitem__(self, index):
            if index == 0:
                raise DatasetError("image/a.png: cannot be read")
            return super().__getitem__(index)

    assert [r.case for r in readable(Broken([record("a"), record("b")]), range(2))] == ["b"]
    with pytest.raises(DatasetError, match="no target to validate on"):
        Protocol().check([record("a", 0)])
