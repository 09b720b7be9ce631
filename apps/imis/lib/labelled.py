"""What people labelled, read from MONAI Label's datastore as records of single slices. Nothing is ever written to it.

Tag ``final`` is learnt from; tag ``reference`` judges every candidate and is never learnt from. Of a DICOMweb server
these are the labels that were submitted through this one. A mask drawn on single slices is thin along the axis that it
was drawn across: that axis is taken, and its slices that hold a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from imis_net.errors import ImageError
from imis_net.images import read_volume
from imis_net.retraining.cycle import Labels
from imis_net.retraining.label_checks import Finding
from imis_net.training.dataset import Record

FINAL, REFERENCE = "final", "reference"
MAX_SLICES = 24
"""Of one label, evenly spread: neighbours in a whole volume teach the same."""


def read_labels(datastore: Datastore) -> Labels:
    """All labels, one that cannot be read named in place of its slices."""
    learning, unreadable = _tagged(datastore, FINAL)
    reference, also = _tagged(datastore, REFERENCE)
    judged = {record.case for record in reference}
    return Labels([r for r in learning if r.case not in judged], reference, [*unreadable, *also])


def fingerprints(datastore: Datastore) -> dict[str, str]:
    """Image id -> what changes when its final label does; cheap, since it is asked for again and again."""
    found = {}
    for image in _here(datastore, "get_labeled_images")():
        path = _label_path(datastore, image, FINAL)
        if path is not None:
            found[image] = f"{path.stat().st_mtime_ns}-{path.stat().st_size}"
    return found


def _tagged(datastore: Datastore, tag: str) -> tuple[list[Record], list[Finding]]:
    records: list[Record] = []
    findings: list[Finding] = []
    for image in sorted(_here(datastore, "list_images")()):
        path = _label_path(datastore, image, tag)
        if path is None:
            continue
        try:
            records += _slices(datastore, image, path, tag)
        except ImageError as error:
            findings.append(Finding(image, "unreadable", str(error)))
    return records, findings


def _label_path(datastore: Datastore, image: str, tag: str) -> Path | None:
    if tag not in datastore.get_labels_by_image_id(image):
        return None
    path = Path(_here(datastore, "get_label_uri")(image, tag))
    return path if path.is_file() else None


def _here(datastore: Datastore, method: str) -> Callable[..., Any]:
    """Of a DICOMweb store the folder behind it: that asks no server, and holds what was submitted here."""
    kind = LocalDatastore if isinstance(datastore, LocalDatastore) else type(datastore)
    return partial(getattr(kind, method), datastore)


def _slices(datastore: Datastore, image: str, path: Path, tag: str) -> Iterator[Record]:
    volume, label = read_volume(Path(datastore.get_image_uri(image))), read_volume(path)
    facts, said = datastore.get_image_info(image) or {}, datastore.get_label_info(image, tag) or {}
    patient = str(facts.get("patient") or facts.get("PatientID") or file_patient(datastore, image))
    modality = str(volume.modality or facts.get("Modality") or "unknown")
    values = np.clip(np.rint(label.array[..., 0] if label.is_colour else label.array), 0, 65535).astype(np.uint16)
    names = target_names(said, [int(v) for v in np.unique(values) if v])
    # A label of another size keeps it: the label checks say so.
    fits = values.shape == volume.array.shape[:3]
    axis, indices = _drawn_slices(values) if fits else (2, [0])
    for index in indices:
        label_map = np.ascontiguousarray(np.take(values, index, axis=axis).T)
        picture, case = volume.slice_rgb(index, axis), f"{image}_{axis}_{index}"
        yield Record(case, patient, "labels", modality, picture, ((label_map, names),))


def _drawn_slices(values: np.ndarray) -> tuple[int, Sequence[int]]:
    """The axis with the fewest labelled slices, and these; an empty label has its middle slice, to be told so."""
    candidates = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        candidates.append((axis, np.flatnonzero(values.any(axis=others))))
    axis, indices = min(candidates, key=lambda c: len(c[1]))
    if not len(indices):
        return 2, [values.shape[2] // 2]
    chosen = np.linspace(0, len(indices) - 1, min(MAX_SLICES, len(indices))).round().astype(int)
    return axis, [int(i) for i in indices[chosen]]


def label_entries(info: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a viewer said of each value, without what is no such entry."""
    listed = info.get("label_info")
    return [e for e in listed if isinstance(e, Mapping)] if isinstance(listed, list) else []


def target_names(info: Mapping[str, Any], values: Sequence[int]) -> dict[int, str]:
    """Names of voxel values: by index, or in order where a viewer numbered differently; {} where nobody knows."""
    params = info.get("params")
    given = params.get("label_names") if isinstance(params, Mapping) else None
    if isinstance(given, Mapping):
        return {v: str(name) for name, v in given.items() if isinstance(v, int)}
    entries = [e for e in label_entries(info) if e.get("name")]
    by_index = {e["idx"]: str(e["name"]) for e in entries if isinstance(e.get("idx"), int)}
    if set(values) <= set(by_index):
        return {v: by_index[v] for v in values}
    if len(entries) == len(values):  # Slicer counts segments that it did not export
        return {v: str(e["name"]) for v, e in zip(values, entries, strict=True)}
    return {}


def file_patient(datastore: Datastore, image: str) -> str:
    """Who an image's file says it is of; one that does not say is a patient of its own."""
    path = Path(datastore.get_image_uri(image))
    first = min((p for p in path.iterdir() if p.is_file()), default=path) if path.is_dir() else path
    if first.suffix.lower() not in (".dcm", ""):
        return image
    try:
        return str(dcmread(first, stop_before_pixels=True).get("PatientID") or image)
    except (InvalidDicomError, OSError):
        return image
