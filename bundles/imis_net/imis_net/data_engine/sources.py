"""What lies in a folder: images and the files with their labels, found without reading a pixel.

dataset.json with ``training`` and ``label`` of .npz   IMed-361M's layout
index.json with ``cases``                              this project's own index
labels/final or labels*, masks*                        files of equal name beside the images (MONAI Label, nnU-Net)
DICOM files, SEG among them                            series joined by their UIDs
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pydicom
from pydicom.errors import InvalidDicomError

from imis_net.errors import DatasetError

LabelKind = Literal["map", "mask", "rows", "seg"]
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
_LABEL_FOLDERS = re.compile(r"^(labels?|masks?|segmentations?|annotations?)", re.IGNORECASE)
NOT_IMAGES = (".json", ".csv", ".txt", ".md", ".xml", ".html")
SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass(frozen=True)
class LabelFile:
    """One file with regions.

    Attributes:
        kind: ``map`` (a value per name), ``mask`` (non-zero is the one name), ``rows`` (IMed-361M's sparse rows),
            ``seg`` (DICOM SEG, which names its own segments).
        names: the values' names; {1: name} of a mask; the classes' names in order from 1 of rows.
    """

    path: Path
    kind: LabelKind
    names: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One image file (or a folder with a DICOM series) and its labels.

    Attributes:
        stem: unique in its data set and fit for a file name; of a 2D image ``<patient>_<slice>`` where it has both.
        split: training or test as the source says, or None.
    """

    stem: str
    image: Path
    labels: tuple[LabelFile, ...]
    patient: str
    modality: str = "unknown"
    licence: str = "unknown"
    origin: str = ""
    split: str | None = None


def find_sources(root: Path, modality: str = "unknown", licence: str = "unknown") -> list[Source]:
    """Every image below a folder, sorted by stem.

    Args:
        modality, licence: of images whose source does not say.

    Raises:
        DatasetError: no folder, a broken index, or nothing in it.
    """
    if not root.is_dir():
        raise DatasetError(f"--source: there is no folder {root}")
    found = sorted(_finder(root)(root, modality, licence), key=lambda s: s.stem)
    if not found:
        raise DatasetError(f"--source: no image in {root}")
    for one, other in pairwise(found):
        if one.stem == other.stem:
            raise DatasetError(f"{one.image.name} and {other.image.name}: both would be called {one.stem!r}")
    return found


def _finder(root: Path) -> Any:
    if (root / "index.json").is_file():
        return _from_index
    tree = _json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    items = tree.get("training") or tree.get("test") or []
    if items and str(items[0].get("label", "")).endswith(".npz"):
        return _from_imed361m
    return _from_folders


def _from_imed361m(root: Path, modality: str, licence: str) -> Iterator[Source]:
    tree = _json(root / "dataset.json")
    try:
        labels = {int(k): v for k, v in tree["labels"].items()}
        names = {i + 1: n for i, n in enumerate(n for _, n in sorted(labels.items()) if n != "background")}
        modality = tree.get("modality", {}).get("0", modality)
        for split in ("training", "test"):
            for item in tree.get(split, []):
                stem = Path(item["image"]).stem
                label = LabelFile(root / item["label"], "rows", names)
                patient = stem.rpartition("_")[0] or stem
                origin = tree.get("name", root.name)
                yield Source(_fit(stem), root / item["image"], (label,), patient, modality, licence, origin, split)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{root.name}/dataset.json: expected IMed-361M's layout ({error})") from error


def _from_index(root: Path, modality: str, licence: str) -> Iterator[Source]:
    splits = {"train": "training", "val": "test", "test": "test"}
    try:
        for case in _json(root / "index.json")["cases"]:
            if "image" not in case:
                continue
            names = {int(k): v for k, v in case.get("labels", {}).items()} if case["kind"] == "3d" else {}
            labels = [LabelFile(root / m["path"], "mask", {1: m["label"]}) for m in case.get("masks", [])]
            if "label" in case and case["kind"] == "3d":
                labels.append(LabelFile(root / case["label"], "map", names))
            yield Source(
                _fit(case["id"]),
                root / case["image"],
                tuple(labels),
                str(case.get("patient", case["id"])),
                case.get("modality", modality),
                case.get("licence", licence),
                case.get("source", root.name),
                splits.get(case.get("subset") or ""),
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(f"{root.name}/index.json: expected cases with id, kind and image ({error})") from error


def _from_folders(root: Path, modality: str, licence: str) -> Iterator[Source]:
    """DICOM series with their SEG objects, and whatever else lies beside them."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    # Exports of a PACS have no suffix, so that only the content tells.
    may_be_dicom = (p for p in files if _suffix(p) in (".dcm", "") and p.suffix not in NOT_IMAGES)
    dicom = {p: tags for p in may_be_dicom if (tags := _tags(p)) is not None}
    yield from _from_dicom(root, dicom, modality, licence)
    yield from _from_files(root, [p for p in files if p not in dicom and _suffix(p)], modality, licence)


def _from_files(root: Path, files: list[Path], modality: str, licence: str) -> Iterator[Source]:
    """Images, and labels of the same name in a folder called labels, masks and the like; also ``name/<class>.png``."""
    is_label = {p: any(_LABEL_FOLDERS.match(part) for part in p.relative_to(root).parts[:-1]) for p in files}
    names = _names_file(root)
    by_key: dict[str, list[LabelFile]] = defaultdict(list)
    for path in (p for p in files if is_label[p]):
        by_key[_key(path)].append(LabelFile(path, "map", names))
        by_key[path.parent.name].append(LabelFile(path, "mask", {1: _base(path)}))
    for path in (p for p in files if not is_label[p]):
        stem = _fit("_".join((*path.relative_to(root).parts[:-1], _base(path))))
        labels = tuple(by_key.get(_key(path), ()))
        yield Source(stem, path, labels, _base(path), modality, licence, root.name)


def _from_dicom(root: Path, dicom: dict[Path, Any], modality: str, licence: str) -> Iterator[Source]:
    """Each folder of a series, with the SEG objects that refer to it; those that refer to none come as they are."""
    series: dict[str, tuple[Path, Any]] = {}
    segs: dict[str, list[LabelFile]] = defaultdict(list)
    for path, tags in dicom.items():
        if tags.get("SOPClassUID") == SEGMENTATION_STORAGE:
            names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in tags.SegmentSequence}
            for reference in tags.get("ReferencedSeriesSequence", []):
                segs[str(reference.SeriesInstanceUID)].append(LabelFile(path, "seg", names))
        elif "Rows" in tags:
            series.setdefault(str(tags.get("SeriesInstanceUID", path)), (path, tags))
    num_files = Counter(path.parent for path in dicom)
    num_series = Counter(path.parent for path, _ in series.values())
    for uid, (path, tags) in series.items():
        image = path if num_files[path.parent] == 1 else path.parent
        named_by = path if num_series[path.parent] > 1 else image
        stem = _fit("_".join(named_by.relative_to(root).with_suffix("").parts) or image.name)
        labels, patient = tuple(segs.pop(uid, ())), str(tags.get("PatientID") or stem)
        yield Source(stem, image, labels, patient, str(tags.get("Modality", modality)), licence, root.name)
    for path in sorted({label.path for labels in segs.values() for label in labels}):
        stem = _fit("_".join(path.relative_to(root).with_suffix("").parts))
        yield Source(stem, path, (LabelFile(path, "seg"),), stem, "SEG", licence, root.name)


def _tags(path: Path) -> Any:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, OSError, ValueError, AttributeError, TypeError, KeyError, EOFError):
        return None


def _names_file(root: Path) -> dict[int, str]:
    """value -> name from labels.json or dataset.json, whichever way round it is written."""
    for name in ("labels.json", "dataset.json"):
        if (root / name).is_file():
            labels = _json(root / name).get("labels", {})
            pairs = labels.items() if isinstance(labels, dict) else enumerate(labels)
            return {int(k): str(v) for k, v in (p if str(p[0]).isdigit() else p[::-1] for p in pairs)}
    return {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path.name}: expected JSON ({error})") from error


def _suffix(path: Path) -> str:
    return next((s for s in IMAGE_SUFFIXES if path.name.lower().endswith(s)), "")


def _base(path: Path) -> str:
    return path.name[: len(path.name) - len(_suffix(path))]


def _key(path: Path) -> str:
    """What an image and its label have in common: nnU-Net's images end in a channel, labels do not."""
    return re.sub(r"_0000$", "", _base(path))


def _fit(name: str) -> str:
    """Fit for a file name on any system; letters of any script stay."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "image"
