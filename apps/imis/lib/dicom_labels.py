"""Labels of a DICOM series as the label store keeps them, from and to DICOM SEG."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore

from imis_net.dicom_seg import Identity, Segment, read_dicom_seg, write_dicom_seg
from imis_net.images import Volume
from lib.label_files import label_array
from lib.label_store import Version
from lib.labelled import label_entries, target_names


def series_of(datastore: Datastore, image: str, path: Path) -> Path:
    """The folder of an image's DICOM files: of a DICOMweb store beside the NIfTI that it made of them."""
    if isinstance(datastore, DICOMWebDatastore):
        return Path(datastore._datastore.image_path()) / image
    return path


def from_dicom_seg(file: Path, series: Path, volume: Volume, info: dict[str, Any]) -> Path:
    """A DICOM SEG as NIfTI beside it; ``info`` gets what its segments are unless the caller said so.

    Raises:
        ImageError: not a DICOM SEG of this series.
    """
    label, segments = read_dicom_seg(file, series, volume.array.shape[:3], volume.affine)
    info.setdefault("label_info", [_entry(value, segment) for value, segment in segments.items()])
    converted = file.with_name("converted.nii")
    nib.Nifti1Image(label, volume.affine).to_filename(converted)
    return converted


def to_dicom_seg(version: Version, content: bytes, series: Path, volume: Volume) -> bytes:
    """A kept label with the names, colours and codes that it was saved with: the same file each time.

    Raises:
        ImageError: the image is no DICOM series, or nothing is labelled.
    """
    label = label_array(content, version.suffix, volume.array.shape[:3])
    return as_dicom_seg(label, version.facts, identity(version), series, volume)


def as_dicom_seg(
    label: np.ndarray, facts: Mapping[str, Any], identity: Identity, series: Path, volume: Volume
) -> bytes:
    """Values [i, j, k] of a volume as ``facts`` name them.

    Raises:
        ImageError: as above.
    """
    segments = _segments(facts, [int(v) for v in np.unique(label) if v])
    return write_dicom_seg(label, volume.affine, series, segments, identity)


def identity(version: Version) -> Identity:
    """A version is one document, wherever and however often it is written."""
    key = f"{version.image} {version.tag} {version.id} {version.sha256} {version.time!r}"
    return Identity(key, datetime.fromtimestamp(version.time))


def _segments(facts: Mapping[str, Any], values: list[int]) -> dict[int, Segment]:
    said = {str(entry.get("name")): entry for entry in label_entries(facts)}
    named = {v: (name, said.get(name, {})) for v, name in target_names(facts, values).items()}
    return {v: Segment(name, _rgb(entry), _code(entry)) for v, (name, entry) in named.items()}


def _rgb(entry: Mapping[str, Any]) -> tuple[int, int, int] | None:
    match entry.get("color"):
        case [int(red), int(green), int(blue), *_] if all(0 <= v <= 255 for v in (red, green, blue)):
            return red, green, blue
    return None


def _code(entry: Mapping[str, Any]) -> tuple[str, str, str] | None:
    match entry.get("code"):
        case [str(value), str(scheme), str(meaning)]:
            is_short = 0 < len(value) <= 16 and 0 < len(scheme) <= 16 and 0 < len(meaning) <= 64
            is_plain = all(text.isprintable() and "\\" not in text for text in (value, scheme, meaning))
            return (value, scheme, meaning) if is_short and is_plain else None
    return None


def _entry(value: int, segment: Segment) -> dict[str, Any]:
    more = {"color": segment.rgb and list(segment.rgb), "code": segment.code and list(segment.code)}
    return {"name": segment.name, "idx": value, **{key: said for key, said in more.items() if said}}
