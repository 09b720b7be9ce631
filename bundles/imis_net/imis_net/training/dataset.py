"""Records for training and evaluation: images with named targets, from our ``index.json`` or IMed-361M's layout.

A record that cannot be used raises ``DatasetError`` with its path; readers skip it by count and log it, and never
replace it by another at random.
"""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

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
        interactive_masks: uint16 [H, W], a partition into unnamed regions of interest (0: none), if the data has one.
    """

    case: str
    patient: str
    source: str
    modality: str
    image: np.ndarray
    targets: tuple[tuple[np.ndarray, dict[int, str]], ...]
    scribbles: tuple[np.ndarray, ...] = ()
    interactive_masks: np.ndarray | None = None

    def masks(self, min_pixels: int = 1) -> Iterator[tuple[str, np.ndarray]]:
        """(name, bool [H, W]) of each target of at least ``min_pixels``."""
        for label_map, names in self.targets:
            counts = np.bincount(label_map.ravel(), minlength=1)
            for value in np.flatnonzero(counts >= max(1, min_pixels)):
                if value:
                    yield names.get(int(value), ""), label_map == value


def read_index(
    root: Path | str,
    subsets: Sequence[str | None],
    exclude_sources: Sequence[str] = (),
    slice_step: int = 6,
    with_interactive_masks: bool = False,
) -> list[Record]:
    """Records of an ``index.json`` layout.

    Args:
        root: the folder with index.json.
        subsets: which values of ``subset`` to take (None: cases without one).
        exclude_sources: cases whose source contains any of these are left out.
        slice_step: of a volume, take every so many slices of each axis.
        with_interactive_masks: read the pictures that cases name as ``imask`` too; their terms may differ from the
            images'.

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
            records.extend(_read_case(root, case, slice_step, with_interactive_masks))
        except UNUSABLE as error:
            num_skipped += 1
            log.warning("skipped %s: %s", case.get("image", case.get("id")), error)
    if num_skipped:
        log.warning("skipped %d of %d records", num_skipped, len(records) + num_skipped)
    if not records:
        raise DatasetError(f"{root}: no usable record in subsets {list(subsets)}")
    return records


class OnDemand(Sequence[Record]):
    """What a reader reads, when first asked for: a config that names bad data can then be told so in one sentence."""

    def __init__(self, read: Callable[..., Sequence[Record]], **arguments: Any) -> None:
        self._read, self._arguments = read, arguments

    @cached_property
    def _records(self) -> Sequence[Record]:
        return self._read(**self._arguments)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    @property
    def patients(self) -> set[str] | None:
        return getattr(self._records, "patients", None)


class Imed361m(Sequence[Record]):
    """Records of the IMed-361M layout as published, read from disk when asked for: it has millions of images.

    The layout: dataset.json, image/*.png, label/*.npz, imask/*.npy. A label file is a sparse matrix [C, H * W], one row
    per class in dataset.json's order; its true shape stands in the file name. An interactive mask file is a partition
    [H, W, 1] of ids. A file's stem is ``<patient>_<slice>``.
    """

    def __init__(self, root: Path | str, split: str, with_interactive_masks: bool = False) -> None:
        """Read dataset.json alone.

        Args:
            root: the folder with dataset.json.
            split: "training" or "test".
            with_interactive_masks: read imask/ too.

        Raises:
            DatasetError: no readable dataset.json.
        """
        self.root, self.split, self._with_interactive_masks = Path(root), split, with_interactive_masks
        try:
            facts = json.loads((self.root / "dataset.json").read_text())
            labels = facts["labels"]
            self._names = [labels[k] for k in sorted(labels, key=int) if labels[k] != "background"]
            self._items = list(facts[split])
            self._modality, self._source = facts["modality"]["0"].upper(), facts["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{self.root}: expected a dataset.json of the IMed-361M layout with {split!r}"
            ) from error

    def __len__(self) -> int:
        return len(self._items)

    @property
    def patients(self) -> set[str]:
        return {self._patient(Path(i["image"]).stem) for i in self._items if isinstance(i, dict) and "image" in i}

    def __getitem__(self, index: Any) -> Any:
        """One record (or, of a slice, a list of them).

        Raises:
            DatasetError: with the path, when a file of it is missing or broken.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item = self._items[index]
        try:
            return self._read(item)
        except UNUSABLE as error:
            where = item.get("image", item) if isinstance(item, dict) else item
            raise DatasetError(f"{self.root / str(where)}: {error}") from error

    def _read(self, item: dict[str, str]) -> Record:
        image = np.asarray(Image.open(self.root / item["image"]).convert("RGB"))
        size = (image.shape[0], image.shape[1])
        rows = read_sparse(self.root / item["label"], len(self._names), size)
        stem = Path(item["image"]).stem
        named = zip(self._names, rows, strict=True)
        targets = tuple((row.astype(np.uint16), {1: name}) for name, row in named if row.any())
        regions = None
        if self._with_interactive_masks and "imask" in item:
            regions = _read_partition(self.root / item["imask"], size)
        return Record(
            stem, self._patient(stem), self._source, self._modality, image, targets, interactive_masks=regions
        )

    def _patient(self, stem: str) -> str:
        return f"{self._source}:{stem.rpartition('_')[0] or stem}"


def read_imed361m(root: Path | str, split: str) -> list[Record]:
    """All usable records of the IMed-361M layout at once; the others are counted and named in the log.

    Raises:
        DatasetError: no readable dataset.json, or no record left.
    """
    lazy, records = Imed361m(root, split), []
    for i in range(len(lazy)):
        try:
            records.append(lazy[i])
        except DatasetError as error:
            log.warning("skipped %s", error)
    if len(records) < len(lazy):
        log.warning("skipped %d of %d records", len(lazy) - len(records), len(lazy))
    if not records:
        raise DatasetError(f"{root}: no usable record in {split!r}")
    return records


def read_sparse(path: Path, num_classes: int, size: tuple[int, int]) -> np.ndarray:
    """[C, H, W] of 0 and 1."""
    shape = tuple(int(n) for n in path.name.split(".")[-2].strip("()").split(","))
    if shape[:3] != (num_classes, *size):
        raise DatasetError(f"{path.name}: expected {num_classes} classes of {size}, got {shape}")
    return sparse.load_npz(path).toarray().reshape(shape[:3])


def _read_partition(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint16 [H, W], ids made contiguous from 1; the file's -1 (ignored pixels) becomes 0, its 0 is a region."""
    ids = np.load(path, allow_pickle=False)
    if ids.shape[:2] != size or ids.size != size[0] * size[1]:
        raise DatasetError(f"{path.name}: expected interactive masks of {size}, got {list(ids.shape)}")
    ids = ids.reshape(size)
    _, contiguous = np.unique(np.where(ids < 0, -1, ids), return_inverse=True)
    return (contiguous.reshape(size) + (0 if (ids < 0).any() else 1)).astype(np.uint16)


def _read_case(root: Path, case: dict, slice_step: int, with_interactive_masks: bool) -> list[Record]:
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
    record = _record(case, case["id"], image, tuple(targets), scribbles)
    if with_interactive_masks and "imask" in case:
        ids = np.asarray(Image.open(root / case["imask"])).astype(np.uint16)
        record = replace(record, interactive_masks=_checked(ids, image, case["imask"]))
    return [record]


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
