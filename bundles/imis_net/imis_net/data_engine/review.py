"""People's verdicts on made masks, kept with their history: nothing is deleted, and every verdict can be taken back."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from imis_net.data_engine.assembly import read_index
from imis_net.data_engine.layout import Record, flatten, npy, read_masks, write_record
from imis_net.errors import DatasetError
from imis_net.files import write_atomically

Verdict = Literal["accept", "reject", "rename"]
_MAX_NAME = 80


@dataclass(frozen=True)
class Decision:
    """One verdict on one mask.

    Attributes:
        name: the new name; of ``rename`` only.
        at: when, ISO 8601 in UTC.

    Raises:
        DatasetError: an unknown verdict, a name missing or unfit.
    """

    stem: str
    mask_id: int
    verdict: Verdict
    at: str
    reviewer: str
    name: str | None = None

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise DatasetError(f"verdict: expected one of {', '.join(get_args(Verdict))}, got {self.verdict!r}")
        if self.verdict == "rename" and not re.fullmatch(rf"\w[\w .,/()-]{{0,{_MAX_NAME - 1}}}", self.name or ""):
            raise DatasetError(f"name: expected 1 to {_MAX_NAME} letters, digits, spaces or _.,/()-, got {self.name!r}")


def decide(out: Path, decision: Decision) -> Record:
    """Write a verdict into the image's record, and its interactive masks without what is rejected; the new record.

    Raises:
        DatasetError: no such image or mask, or a new name for ground truth, which its label file has too.
        OSError: cannot be written.
    """
    record = read_record(out, decision.stem)
    mask = next((m for m in record["masks"] if m["id"] == decision.mask_id), None)
    if mask is None:
        raise DatasetError(f"{decision.stem}: expected a mask from 1 to {len(record['masks'])}, got {decision.mask_id}")
    if decision.verdict == "rename" and mask["steps"][-1][1] != "no_ground_truth":
        raise DatasetError("a target is named by its label file: change the table of names and build again")
    before = {"review": mask.get("review"), "name": mask["name"]}
    if decision.verdict == "rename":
        mask["name"] = decision.name
    else:
        mask["review"] = decision.verdict
    event = {"verdict": decision.verdict, "at": decision.at, "reviewer": decision.reviewer, "before": before}
    mask.setdefault("history", []).append(event | {"name": mask["name"]})
    _flatten_again(out, record)
    write_record(out, record)
    return record


def read_record(out: Path, stem: str) -> Record:
    """
    Raises:
        DatasetError: no such image; a stem that is a path is none.
    """
    path = out / "records" / f"{stem}.json"
    if Path(stem).name != stem or not path.is_file():
        raise DatasetError(f"no such image: {stem[:80]!r}")
    return json.loads(path.read_text())


def write_index(out: Path) -> None:
    """The index anew from its images' records; one at a time, whole or not at all."""
    stems = [r["stem"] for r in read_index(out)]
    lines = (json.dumps(read_record(out, s), ensure_ascii=False) + "\n" for s in stems)
    write_atomically(out / "index.jsonl", "".join(lines).encode())


def _flatten_again(out: Path, record: Record) -> None:
    masks = read_masks(out, record)
    stands = [i for i, m in enumerate(record["masks"]) if m.get("review") != "reject"]
    is_target = [_is_target(record["masks"][i]) for i in stands]
    ids = flatten([masks[i] for i in stands], is_target, tuple(record["size"]))
    ids = np.array([0, *(record["masks"][i]["id"] for i in stands)], np.int64)[ids]
    content = npy(ids)
    write_atomically(out / record["imask"], content)
    record["sha256"]["imask"] = hashlib.sha256(content).hexdigest()
    for mask in record["masks"]:
        mask["visible_px"] = int((ids == mask["id"]).sum())


def _is_target(mask: dict[str, Any]) -> bool:
    return mask["steps"][-1][1] != "no_ground_truth"
