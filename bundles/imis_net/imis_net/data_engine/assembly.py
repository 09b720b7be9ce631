"""Records -> the data set: dataset.json, index.jsonl and the list of what was left out.

Reads one record at a time in the order of stems; a second run over the same records writes the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from imis_net.data_engine.duplicates import DuplicateFinder
from imis_net.data_engine.ingest import Reject
from imis_net.data_engine.layout import Record
from imis_net.data_engine.names import category_of
from imis_net.files import write_atomically

SPLITS = ("training", "test")


def read_records(out: Path) -> Iterator[Record]:
    for path in sorted((out / "records").glob("*.json")):
        yield json.loads(path.read_text())


def assemble(
    out: Path, name: str, classes: Sequence[str], rejects: Iterable[Reject], run_digest: str, max_distance: int
) -> list[Reject]:
    """Write the data set's own files; returns everything left out, duplicates and leftovers of other runs included.

    Raises:
        OSError: cannot be written.
    """
    left_out = list(rejects)
    finder = DuplicateFinder(max_distance)
    items: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    modalities: Counter[str] = Counter()
    index = io.StringIO()
    for record in read_records(out):
        if record["run"] != run_digest:
            left_out.append(Reject(record["stem"], "made by a run with other settings, classes or weights"))
            continue
        twin = finder.seen(record["stem"], record["phash"], record["sha256"]["image"], record["patient"])
        if twin is not None:
            left_out.append(Reject(record["stem"], f"duplicate of {twin}"))
            continue
        items[record["split"]].append({kind: record[kind] for kind in ("image", "label", "imask")})
        modalities[record["modality"]] += 1
        index.write(json.dumps(record, ensure_ascii=False) + "\n")
    _write_dataset_json(out, name, classes, items, modalities)
    write_atomically(out / "index.jsonl", index.getvalue().encode())
    write_rows(out / "rejects.csv", ["stem", "reason"], [[r.stem, r.reason] for r in _sorted(left_out)])
    unmapped = [[c, category_of(c) or ""] for c in classes]
    write_rows(out / "classes.csv", ["class", "category"], unmapped)
    return _sorted(left_out)


def read_index(out: Path) -> Iterator[Record]:
    with (out / "index.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def _write_dataset_json(
    out: Path, name: str, classes: Sequence[str], items: dict[str, list[dict[str, str]]], modalities: Counter[str]
) -> None:
    kinds = sorted(modalities) or ["unknown"]
    tree = {
        "name": name,
        "description": f"{'_'.join(kinds)}_{name}",
        "dimension": "2D",
        "modality": {str(i): kind for i, kind in enumerate(kinds)},
        "labels": {"0": "background", **{str(i): c for i, c in enumerate(classes, 1)}},
        "numTraining": len(items["training"]),
        "training": items["training"],
        "numTest": len(items["test"]),
        "test": items["test"],
    }
    write_atomically(out / "dataset.json", json.dumps(tree, indent=1, ensure_ascii=False).encode())


def _sorted(rejects: Iterable[Reject]) -> list[Reject]:
    return sorted(set(rejects), key=lambda r: (r.stem, r.reason))
