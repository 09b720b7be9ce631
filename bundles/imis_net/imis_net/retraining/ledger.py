"""Who learns, who validates and who judges: decided once per patient and kept for ever.

    ROOT/splits.json              patient (hashed) -> training, validation or test
    ROOT/references/<digest>.npz  the frozen reference slices that judge every candidate

A reference is copied here when it is first seen, so that nobody who edits a label later moves the goal. A patient whose
labels were learnt from is never admitted as a judge.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from imis_net.errors import DatasetError
from imis_net.files import write_durably
from imis_net.retraining.label_checks import Finding
from imis_net.training.dataset import Record
from imis_net.training.trunk_features import image_key

TRAINING, VALIDATION, TEST = "training", "validation", "test"
VALIDATION_EVERY = 5
"""Of the patients that come to learn from, the second and every fifth after it validate."""


class Ledger:
    """One writer at a time: whoever holds the run's lock."""

    def __init__(self, root: Path) -> None:
        """Raises: DatasetError: a ledger that is there but damaged; guessing its splits would leak patients."""
        self.root = Path(root)
        self._references = self.root / "references"
        self._references.mkdir(parents=True, exist_ok=True)
        self._splits = _read_splits(self.root / "splits.json")

    def split_of(self, patient: str) -> str | None:
        return self._splits.get(_hashed(patient))

    def counts(self) -> dict[str, int]:
        """Patients of each split."""
        return {split: list(self._splits.values()).count(split) for split in (TRAINING, VALIDATION, TEST)}

    def admit(self, records: Sequence[Record]) -> list[Finding]:
        """Take reference slices in, once; why some were not."""
        findings, admitted = [], []
        for record in records:
            if self.split_of(record.patient) in (TRAINING, VALIDATION):
                reason = "marked as reference, but the patient's labels were learnt from before"
                findings.append(Finding(record.case, "learnt-from", reason))
            else:
                admitted.append(record)
        self._assign({r.patient: TEST for r in admitted})  # first, so that a kill leaks nobody
        for record in admitted:
            path = self._references / f"{_hashed(f'{record.patient}|{record.case}')}.npz"
            if not path.is_file():
                write_durably(path, _packed(record))
        return findings

    def references(self) -> list[Record]:
        """All judges, in the same order for every candidate."""
        return [_unpacked(path) for path in sorted(self._references.glob("*.npz"))]

    def divide(self, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        """What to learn from and what to validate on; slices of judges, or with their picture, are in neither."""
        judged = {image_key(r.image) for r in self.references()}
        kept = [r for r in records if self.split_of(r.patient) != TEST and image_key(r.image) not in judged]
        self._assign_learners(dict.fromkeys(r.patient for r in kept))
        splits = {r.patient: self.split_of(r.patient) for r in kept}
        training = [r for r in kept if splits[r.patient] == TRAINING]
        return training, [r for r in kept if splits[r.patient] == VALIDATION]

    def _assign_learners(self, patients: Iterable[str]) -> None:
        counts = self.counts()
        number = counts[TRAINING] + counts[VALIDATION]
        chosen = {}
        for patient in patients:
            if self.split_of(patient) is None:
                chosen[patient] = VALIDATION if number % VALIDATION_EVERY == 1 else TRAINING
                number += 1
        self._assign(chosen)

    def _assign(self, splits: dict[str, str]) -> None:
        new = {_hashed(patient): split for patient, split in splits.items() if self.split_of(patient) is None}
        if new:
            self._splits |= new
            write_durably(self.root / "splits.json", json.dumps(self._splits, indent=1).encode())


def _read_splits(path: Path) -> dict[str, str]:
    try:
        splits = json.loads(path.read_text())
        if not set(splits.values()) <= {TRAINING, VALIDATION, TEST}:
            raise ValueError("an unknown split")
        return dict(splits)
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise DatasetError(f"{path.name}: expected patients and their splits, got something else: {error}") from error


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _packed(record: Record) -> bytes:
    facts = {"case": record.case, "patient": record.patient, "source": record.source, "modality": record.modality}
    names = [{str(k): v for k, v in names.items()} for _, names in record.targets]
    arrays = {f"target_{n}": label_map for n, (label_map, _) in enumerate(record.targets)}
    file = io.BytesIO()
    text = np.array(json.dumps({**facts, "names": names}))
    np.savez_compressed(file, image=record.image, facts=text, **arrays)
    return file.getvalue()


def _unpacked(path: Path) -> Record:
    try:
        with np.load(path, allow_pickle=False) as kept:
            facts = json.loads(str(kept["facts"]))
            names = [{int(k): v for k, v in n.items()} for n in facts.pop("names")]
            targets = tuple((kept[f"target_{n}"], of) for n, of in enumerate(names))
            return Record(**facts, image=kept["image"], targets=targets)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"reference {path.name}: cannot be read ({error})") from error
