"""Records for training and evaluation: images with named targets, from our ``index.json`` or IMed-361M's layout.

A record that cannot be used raises ``DatasetError`` with its path; readers skip it by count and log it, and never
replace it by another at random.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import sparse

from imis_net.errors import DatasetError, ImageError
from imis_net.images import read_volume

log = logging.getLogger(__name__)

UNUSABLE = (
    *(DatasetError, ImageError, OSError, SyntaxError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError),
    *(EOFError, KeyError, IndexError, ValueError, TypeError),
)
"""What broken files (Pillow's and numpy's errors among them) and broken entries of an index raise."""


@dataclass(frozen=True, eq=False)
class Record:
    """One 2D image and its targets.

    Attributes:
        case: its identifier.
        patient: who it is of; two records of one patient never stand in different splits.
        source, modality: where it comes from, how it was made.
        image: uint8 [H, W, 3].
        targets: uint16 [H, W] label maps and the names of their values; several maps where targets overlap.
        scribbles: bool [H, W], what people drew on the first target; empty where nobody did.
    """

    case: str
    patient: str
    source: str
    modality: str
    image: np.ndarray
    targets: tuple[tuple[np.ndarray, dict[int, str]], ...]
    scribbles: tuple[np.ndarray, ...] = ()

    def masks(self, min_pixels: int = 1) -> Iterator[tuple[str, np.ndarray]]:
        """(name, bool [H, W]) of each target of at least ``min_pixels``."""
        for label_map, names in self.targets:
            counts = np.bincount(label_map.ravel(), minlength=1)
            for value in np.flatnonzero(counts >= max(1, min_pixels)):
                if value:
                    yield names.get(int(value), ""), label_map == value


def read_index(
    root: Path | str, subsets: Sequence[str | None], exclude_sources: Sequence[str] = (), slice_step: int = 6
) -> list[Record]:
    """Records of an ``index.json`` layout.

    Args:
        root: the folder with index.json.
        subsets: which values of ``subset`` to take (None: cases without one).
        exclude_sources: cases whose source contains any of these are left out.
        slice_step: of a volume, take every so many slices of each axis.

    Raises:
        DatasetError: no readable index.json, or no record left.
    """
    root = Path(root)
    try:
        cases = json.loads((root / "index.json").read_text())["cases"]
        if not all(isinstance(case, dict) for case in cases):
            raise TypeError("a case is not an object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{root}: expected an index.json with cases") from error
    records: list[Record] = []
    num_skipped = 0
    for case in cases:
        if case.get("subset") not in subsets or any(s in case.get("source", "") for s in exclude_sources):
            continue
        try:
            records.extend(_read_case(root, case, slice_step))
        except UNUSABLE as error:
            num_skipped += 1
            log.warning("skipped %s: %s", case.get("image", case.get("id")), error)
    if num_skipped:
        log.warning("skipped %d of %d records", num_skipped, len(records) + num_skipped)
    if not records:
        raise DatasetError(f"{root}: no usable record in subsets {list(subsets)}")
    return records


def read_imed361m(root: Path | str, split: str) -> list[Record]:
    """Records of the IMed-361M layout as published: dataset.json, image/*.png, label/*.npz.

    A label file is a sparse matrix [C, H * W], one row per class in dataset.json's order; its true shape stands in the
    file name. A file's stem is ``<patient>_<slice>``.

    Args:
        root: the folder with dataset.json.
        split: "training" or "test".

    Raises:
        DatasetError: no readable dataset.json, or no record left.
    """
    root = Path(root)
    try:
        facts = json.loads((root / "dataset.json").read_text())
        names = [facts["labels"][k] for k in sorted(facts["labels"], key=int) if facts["labels"][k] != "background"]
        items, modality, source = facts[split], facts["modality"]["0"], facts["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{root}: expected a dataset.json of the IMed-361M layout with {split!r}") from error
    records = []
    for item in items:
        try:
            image = np.asarray(Image.open(root / item["image"]).convert("RGB"))
            rows = read_sparse(root / item["label"], len(names), (image.shape[0], image.shape[1]))
        except UNUSABLE as error:
            log.warning("skipped %s: %s", item, error)
            continue
        stem = Path(item["image"]).stem
        targets = tuple((row.astype(np.uint16), {1: name}) for name, row in zip(names, rows, strict=True) if row.any())
        patient = f"{source}:{stem.rpartition('_')[0] or stem}"
        records.append(Record(stem, patient, source, modality.upper(), image, targets))
    if len(records) < len(items):
        log.warning("skipped %d of %d records", len(items) - len(records), len(items))
    if not records:
        raise DatasetError(f"{root}: no usable record in {split!r}")
    return records


def read_sparse(path: Path, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """[C, H, W] of 0 and 1."""
    shape = tuple(int(n) for n in path.name.split(".")[-2].strip("()").split(","))
    if shape[:3] != (num_classes, *size):
        raise DatasetError(f"{path.name}: expected {num_classes} classes of {size}, got {shape}")
    return sparse.load_npz(path).toarray().reshape(shape[:3])


def _read_case(root: Path, case: dict, slice_step: int) -> list[Record]:
    kind = case["kind"]
    if kind == "3d":
        return _read_volume_case(root, case, slice_step)
    if kind not in ("2d", "2d-instances", "2d-unlabelled"):
        return []
    image = np.asarray(Image.open(root / case["image"]).convert("RGB"))
    targets: list[tuple[np.ndarray, dict[int, str]]] = []
    for mask in case.get("masks", []):
        array = np.asarray(Image.open(root / mask["path"]))
        targets.append(((_checked(array, image, mask["path"]) > 0).astype(np.uint16), {1: mask["label"]}))
    if kind == "2d-instances":
        array = np.asarray(Image.open(root / case["instances"])).astype(np.uint16)
        _checked(array, image, case["instances"])
        targets.append((array, dict.fromkeys(range(1, int(array.max()) + 1), case["label"])))
    drawn = (np.asarray(Image.open(root / s["pos"])) > 0 for s in case.get("scribbles", []))
    scribbles = tuple(s for s in drawn if s.shape == image.shape[:2] and s.any())
    return [_record(case, case["id"], image, tuple(targets), scribbles)]


def _read_volume_case(root: Path, case: dict, slice_step: int) -> list[Record]:
    volume, labels = read_volume(root / case["image"]), read_volume(root / case["label"])
    if volume.array.shape[:3] != labels.array.shape[:3]:
        raise DatasetError(f"label of shape {labels.array.shape}, image of {volume.array.shape}")
    names = {int(k): v for k, v in case["labels"].items()}
    # A label volume's voxels in slice order: the same axes convention as the image's slices.
    label_map = np.rint(labels.array).astype(np.uint16)
    records = []
    for axis in range(3):
        for index in range(slice_step // 2, volume.num_slices(axis), slice_step):
            target = np.ascontiguousarray(np.take(label_map, index, axis=axis).T)
            if np.count_nonzero(target) < 64:
                continue
            image = volume.slice_rgb(index, axis=axis)
            records.append(_record(case, f"{case['id']}_{axis}_{index}", image, ((target, names),)))
    return records


def _record(
    case: dict,
    name: str,
    image: np.ndarray,
    targets: tuple[tuple[np.ndarray, dict[int, str]], ...],
    scribbles: tuple[np.ndarray, ...] = (),
) -> Record:
    patient = f"{case['source']}:{case.get('patient', case['id'])}"
    return Record(name, patient, case["source"], case["modality"], image, targets, scribbles)


def _checked(mask: np.ndarray, image: np.ndarray, path: str) -> np.ndarray:
    if mask.shape != image.shape[:2]:
        raise DatasetError(f"{path}: expected a mask of {image.shape[:2]}, got {mask.shape}")
    return mask
