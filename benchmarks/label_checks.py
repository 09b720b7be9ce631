"""What the label checks find and what they question, on abdominal CT, beside what borders alone tell.

python benchmarks/label_checks.py [--data DIR]

Thresholds were set on half of the patients; these are the others, but how far a shift is looked for was decided with
them in view. Labels are those of one organ each and those of all
organs of a slice, as they are, flipped and moved. Rows stand in results/label_checks.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "bundles/imis_net")]

import numpy as np
from claims import Claim, report

from imis_net.retraining.label_checks import LabelledImage, check_label
from imis_net.retraining.label_places import Places
from imis_net.training.dataset import Record, read_index

SOURCE = "dataset/BTCV"
MIN_PIXELS = 30
SLICE_STEP = 4
SHIFT_PX = 10
FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda label: label[:, ::-1],
    "put upside down": lambda label: label[::-1],
    "turned by half": lambda label: label[::-1, ::-1],
    f"moved by {SHIFT_PX} px": lambda label: np.roll(label, SHIFT_PX, axis=1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "dev")
    records = [r for r in read_index(parser.parse_args().data, ["train", "val"]) if SOURCE in r.source]
    return report("label_checks", claims(records))


def claims(records: Sequence[Record]) -> Iterator[Claim]:
    patients = sorted({r.patient for r in records})
    used = {patients[i] for i in np.random.default_rng(0).permutation(len(patients))[: len(patients) // 2]}
    places = Places(centre for r in records for centre in _whole(r).centres)
    tested = [r for r in records if r.patient not in used][::SLICE_STEP]
    for what, items in (
        ("one organ", [item for r in tested for item in _single(r)]),
        ("all organs", [_whole(r) for r in tested]),
    ):
        of = f"borders alone; {len(items)} labels of {len({i.patient for i in items})} patients"
        ours, borders = (_found(items, known, lambda label: label) for known in (places, None))
        name = f"{what}: true labels that are questioned, share"
        yield Claim(name, ours, borders, at_least=False, beside=of)
        for fault, spoil in FAULTS.items():
            ours, borders = (_found(items, known, spoil) for known in (places, None))
            yield Claim(f"{what}: {fault}, share found", ours, borders, beside=of)


def _found(items: Sequence[LabelledImage], places: Places | None, spoil: Callable[[np.ndarray], np.ndarray]) -> float:
    return float(np.mean([check_label(replace(i, label=spoil(i.label)), places) is not None for i in items]))


def _whole(record: Record) -> LabelledImage:
    """All targets in one map; a smaller one that overlaps another lies above it."""
    label, names = np.zeros(record.image.shape[:2], np.uint8), {}
    targets = sorted(record.masks(MIN_PIXELS), key=lambda named: -named[1].sum())
    for value, (name, mask) in enumerate(targets, start=1):
        label[mask], names[value] = value, name
    return LabelledImage(record.case, record.patient, record.image, label, names)


def _single(record: Record) -> Iterator[LabelledImage]:
    for name, mask in record.masks(MIN_PIXELS):
        yield LabelledImage(record.case, record.patient, record.image, mask.astype(np.uint8), {1: name})


if __name__ == "__main__":
    sys.exit(main())
