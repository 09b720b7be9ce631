"""Splitting by patient."""

import numpy as np
import pytest

from imis_net.errors import DatasetError
from imis_net.training.dataset import Record
from imis_net.training.splits import check_patients


def record(patient: str) -> Record:
    return Record(f"case {patient}", patient, "a set", "CT", np.zeros((4, 4, 3), np.uint8), ())


def test_a_patient_on_both_sides_is_refused():
    """Breaks if slices of one patient stand in training and validation: every score would flatter."""
    with pytest.raises(DatasetError, match="patients in training and validation"):
        check_patients([record("1"), record("2")], [record("2")])
    check_patients([record("1")], [record("2")])
