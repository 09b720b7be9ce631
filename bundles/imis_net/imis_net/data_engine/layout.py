"""One image's files in IMed-361M's layout, and the record that says how its masks came to be.

    image/<stem>.png                         RGB
    label/x___<stem>.(C, H, W, 1).npz        SciPy CSR, C x (H * W), int32 of 0 and 1: a row per class
    imask/x___<stem>.npy                     int64 [H, W, 1]: one id per pixel, 0 where no mask is
    records/<stem>.json, records/<stem>.npz  provenance, and every mask whole: a map of ids loses what lies below

A record is written last, so that what has one is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from scipy import sparse

from imis_net.data_engine.ingest import Sample, split_of
from imis_net.data_engine.provenance import InteractiveMask, Outcome
from imis_net.data_engine.regions import bounding_box
from imis_net.data_engine.semantics import Guess
from imis_net.data_engine.settings import IngestSettings
from imis_net.files import write_atomically

FOLDERS = ("image", "label", "imask", "records")
Record = dict[str, Any]


def write_sample(
    out: Path,
    sample: Sample,
    outcome: Outcome,
    guesses: Sequence[Guess],
    num_removed: dict[str, int],
    classes: tuple[str, ...],
    run_digest: str,
    settings: IngestSettings,
) -> Record:
    """Write one image's files, the record last; returns the record.

    Args:
        guesses: a name for each mask that stands, or none at all.

    Raises:
        OSError: the disk is full, or not ours to write.
    """
    height, width = sample.image.shape[:2]
    paths = {
        "image": f"image/{sample.stem}.png",
        "label": f"label/x___{sample.stem}.({len(classes)}, {height}, {width}, 1).npz",
        "imask": f"imask/x___{sample.stem}.npy",
        "whole": f"records/{sample.stem}.npz",
    }
    ids = flatten([m.mask for m in outcome.kept], [m.name is not None for m in outcome.kept], (height, width))
    by_name = {t.name: t.mask for t in sample.targets}
    empty = np.zeros((height, width), bool)
    contents = {
        "image": _png(sample.image),
        "label": _npz([by_name.get(name, empty) for name in classes], height * width),
        "imask": npy(ids),
        "whole": _npz([m.mask for m in outcome.kept], height * width),
    }
    for kind, path in paths.items():
        write_atomically(out / path, contents[kind])
    visible = np.bincount(ids.ravel(), minlength=len(outcome.kept) + 1)
    record: Record = {
        "stem": sample.stem,
        **paths,
        "source": sample.source.origin,
        "source_file": sample.source.image.name,
        "patient": sample.source.patient,
        "modality": sample.source.modality,
        "licence": sample.source.licence,
        "split": split_of(sample.source, settings.test_fraction),
        "size": [height, width],
        "phash": str(imagehash.phash(Image.fromarray(sample.image), settings.duplicate_hash_side)),
        "sha256": {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()},
        "run": run_digest,
        "input": sample.digest,
        "masks": [_facts(m) | {"id": i, "visible_px": int(visible[i])} for i, m in enumerate(outcome.kept, 1)],
        "removed": [_facts(m) for m in outcome.removed],
        "num_removed_before": num_removed,
    }
    for mask, guess in zip(record["masks"], guesses, strict=bool(guesses)):
        mask["guess"] = [guess.name, round(guess.score, 4)]
    write_record(out, record)
    return record


def write_record(out: Path, record: Record) -> None:
    write_atomically(out / "records" / f"{record['stem']}.json", json.dumps(record, ensure_ascii=False).encode())


def is_done(out: Path, sample: Sample, run_digest: str) -> bool:
    """Whether this very input was finished under these very settings, and its files are still there."""
    try:
        record = json.loads((out / "records" / f"{sample.stem}.json").read_text())
        same = record["run"] == run_digest and record["input"] == sample.digest
        return same and all((out / record[kind]).is_file() for kind in ("image", "label", "imask", "whole"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def flatten(masks: Sequence[np.ndarray], are_named: Sequence[bool], size: tuple[int, int]) -> np.ndarray:
    """Masks [H, W] -> one id per pixel, int64 [H, W, 1]: small over large, what stands for a target over the rest."""
    ids = np.zeros(size, np.int64)
    order = sorted(range(len(masks)), key=lambda i: (are_named[i], -np.count_nonzero(masks[i]), i))
    for i in order:
        ids[masks[i]] = i + 1
    return ids[:, :, None]


def read_masks(out: Path, record: Record) -> np.ndarray:
    """bool [N, H, W]: every mask whole, in the order of ids."""
    rows = sparse.load_npz(out / record["whole"]).toarray()
    return rows.reshape(-1, *record["size"]).astype(bool)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _facts(mask: InteractiveMask) -> dict[str, Any]:
    box = bounding_box(mask.mask) if mask.mask.any() else None
    return {
        "name": mask.name,
        "origin": mask.origin.value,
        "score": round(mask.score, 4),
        "area_px": int(mask.mask.sum()),
        "box": box,
        "agreement": None if mask.agreement is None else round(mask.agreement, 4),
        "steps": [[s.action.value, s.rule.value, round(s.value, 4), round(s.threshold, 4)] for s in mask.steps],
    }


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _npz(masks: list[np.ndarray], num_pixels: int) -> bytes:
    rows = np.stack([m.ravel() for m in masks]) if masks else np.zeros((0, num_pixels), bool)
    buffer = io.BytesIO()
    sparse.save_npz(buffer, sparse.csr_matrix(rows, dtype=np.int32))
    return buffer.getvalue()
