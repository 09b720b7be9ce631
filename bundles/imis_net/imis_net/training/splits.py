"""Splitting by patient: slices of one person never stand on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from imis_net.errors import DatasetError
from imis_net.training.dataset import Record


def check_patients(training: Sequence[Record], validation: Sequence[Record]) -> None:
    """Refuse a split in which a patient stands on both sides.

    Raises:
        DatasetError: with the patients.
    """
    both = patients(training) & patients(validation)
    if both:
        raise DatasetError(f"patients in training and validation: {sorted(both)[:5]}")


def patients(records: Sequence[Record]) -> set[str]:
    """Whose they are, without reading images where a list of them exists."""
    known: set[str] | None = getattr(records, "patients", None)
    return {r.patient for r in records} if known is None else known
