"""Splits by patient that never change, and judges that nobody edits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imis_net.errors import DatasetError
from imis_net.retraining.ledger import TEST, Ledger
from imis_net.training.dataset import Record


def record(patient: str, number: int = 0, fill: int = 0) -> Record:
    rng = np.random.default_rng([number, *patient.encode()])
    label = np.zeros((12, 10), np.uint16)
    label[3:7, 2:8] = 1
    image = rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)
    return Record(f"{patient}_{number}", patient, "labels", "CT", image, ((label + fill, {1: "liver"}),))


def test_a_patient_stays_where_it_was_put(tmp_path):
    """Breaks if a split is drawn anew at each run: yesterday's training would be today's validation."""
    first = [record(p, n) for p in ("ann", "bob", "cid") for n in range(2)]
    training, validation = Ledger(tmp_path).divide(first)
    assert {r.patient for r in training} == {"ann", "cid"}
    assert {r.patient for r in validation} == {"bob"}
    again, validating = Ledger(tmp_path).divide([record("zoe"), *reversed(first)])
    assert {r.patient for r in validating} == {"bob"}
    assert {r.patient for r in again} == {"ann", "cid", "zoe"}


def test_judges_are_frozen_and_never_learnt_from(tmp_path):
    """Breaks if an edited reference label moves the goal, or a judge's patient or picture is learnt from."""
    ledger = Ledger(tmp_path)
    assert not ledger.admit([record("ann", 0)])
    assert not ledger.admit([record("ann", 0, fill=1), record("ann", 1)])
    kept = {r.case: r for r in Ledger(tmp_path).references()}
    assert sorted(kept) == ["ann_0", "ann_1"]
    assert kept["ann_0"].targets[0][0].min() == 0
    assert kept["ann_0"].targets[0][1] == {1: "liver"}
    alias = Record("other", "bob", "labels", "CT", record("ann", 0).image, record("ann", 0).targets)
    assert Ledger(tmp_path).divide([record("ann", 5), alias]) == ([], [])


def test_a_patient_that_was_learnt_from_is_no_judge(tmp_path):
    """Breaks if a model may be judged on what it has learnt."""
    ledger = Ledger(tmp_path)
    ledger.divide([record("ann"), record("bob")])
    assert [f.rule for f in ledger.admit([record("ann", 3), record("bob", 3)])] == ["learnt-from"] * 2
    assert ledger.references() == []


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=20))
def test_no_patient_is_ever_in_two_splits(tmp_path_factory, events):
    """Breaks if some order of labels and references puts a patient on two sides."""
    root, sides = tmp_path_factory.mktemp("ledger"), {}
    for number, (patient, is_reference) in enumerate(events):
        ledger = Ledger(root)
        if is_reference:
            ledger.admit([record(patient, number)])
        training, validation = ledger.divide([record(patient, number)])
        for side, some in (("training", training), ("validation", validation), (TEST, ledger.references())):
            for r in some:
                assert sides.setdefault(r.patient, side) == side


def test_a_damaged_ledger_is_not_guessed(tmp_path):
    """Breaks if splits are drawn anew, which leaks patients, because a file is damaged."""
    for content in ("{", "[]", '{"a": "nowhere"}'):
        (tmp_path / "splits.json").write_text(content)
        with pytest.raises(DatasetError, match="expected patients and their splits"):
            Ledger(tmp_path)
