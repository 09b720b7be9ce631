"""A source -> samples: 8-bit pictures with named regions, one by one, so that a volume is all that memory holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pydicom_seg
import SimpleITK as sitk
from pydicom import dcmread

from imis_net.data_engine.names import NamesTable, other_side
from imis_net.data_engine.provenance import Target
from imis_net.data_engine.settings import IngestSettings
from imis_net.data_engine.sources import LabelFile, Source
from imis_net.errors import DatasetError
from imis_net.images import Volume, read_volume
from imis_net.training.dataset import UNUSABLE, read_sparse

AXIS_LETTERS = "xyz"
_MAX_AFFINE_DIFFERENCE_MM = 1e-2


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture.

    Attributes:
        stem: ``<source>`` of a 2D image, ``<source>_<axis><slice>`` of a volume's slice.
        image: uint8 [H, W, 3].
        targets: named by class, in the classes' order; no name twice.
    """

    stem: str
    source: Source
    image: np.ndarray
    targets: tuple[Target, ...]

    @property
    def digest(self) -> str:
        """Of everything that goes in."""
        digest = hashlib.sha256(repr((self.stem, self.image.shape, self.source.modality, self.source.licence)).encode())
        digest.update(self.image.tobytes())
        for target in self.targets:
            digest.update(target.name.encode())
            digest.update(np.packbits(target.mask).tobytes())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Reject:
    """What was left out, and why in one sentence; ``stem`` of a source or a sample."""

    stem: str
    reason: str


def read_samples(source: Source, table: NamesTable, settings: IngestSettings) -> Iterator[Sample | Reject]:
    """Everything usable of a source; never raises on bad input."""
    if any(label.path == source.image for label in source.labels):
        yield Reject(source.stem, f"{source.image.name}: a DICOM SEG whose series is not here")
        return
    try:
        volume = read_volume(source.image)
        regions = _named_regions(source, volume, table)
        _check_sides(regions, volume, table)
    except UNUSABLE as error:
        yield Reject(source.stem, _sentence(error))
        return
    if volume.array.shape[2] == 1:
        yield _sample(source.stem, source, volume, regions, 2, 0, settings)
        return
    yield from _slices(source, volume, regions, settings)


def classes_of(sources: list[Source], table: NamesTable) -> tuple[str, ...]:
    """Every class that the sources' labels declare, sorted: a label file's planes and its name depend on them all."""
    names = {(n, s.modality, s.origin) for s in sources for label in s.labels for n in label.names.values()}
    found = {table.class_of(*name) for name in names}
    return tuple(sorted(c for c in found if c))


def _slices(
    source: Source, volume: Volume, regions: dict[str, np.ndarray], settings: IngestSettings
) -> Iterator[Sample | Reject]:
    num_slices = 0
    for axis in settings.axes:
        sides = [n for a, n in enumerate(volume.array.shape[:3]) if a != axis]
        if max(sides) / min(sides) > settings.max_aspect_ratio:
            continue
        min_px = settings.min_target_fraction * sides[0] * sides[1]
        for index in range(0, volume.num_slices(axis), settings.slice_step):
            planes = {name: np.take(region, index, axis=axis).T for name, region in regions.items()}
            large = {name: plane for name, plane in planes.items() if np.count_nonzero(plane) >= max(1, min_px)}
            if large and num_slices < settings.max_slices_per_volume:
                num_slices += 1
                stem = f"{source.stem}_{AXIS_LETTERS[axis]}{index:04d}"
                yield _sample(stem, source, volume, large, axis, index, settings, is_cut=True)
    if not num_slices:
        yield Reject(source.stem, "no slice with a region large enough, along any axis that is not too elongated")


def _sample(
    stem: str,
    source: Source,
    volume: Volume,
    regions: dict[str, np.ndarray],
    axis: int,
    index: int,
    settings: IngestSettings,
    is_cut: bool = False,
) -> Sample | Reject:
    window = None if settings.intensity == "window" or volume.is_colour else _full_range(volume)
    image = volume.slice_rgb(index, axis, window)
    contrast = int(image.max()) - int(image.min())
    if contrast < settings.min_contrast:
        return Reject(stem, f"no contrast: {contrast} grey levels, expected {settings.min_contrast} or more")
    planes = regions if is_cut else {name: region[:, :, 0].T for name, region in regions.items()}
    targets = (Target(name, np.ascontiguousarray(plane)) for name, plane in sorted(planes.items()))
    return Sample(stem, source, image, tuple(t for t in targets if t.mask.any()))


def _full_range(volume: Volume) -> tuple[float, float] | None:
    """(center, width) from the least to the greatest finite value; None for 8 bits, which stay as they are."""
    if volume.array.dtype == np.uint8:
        return None
    values = volume.array[np.isfinite(volume.array)] if volume.array.dtype.kind == "f" else volume.array
    if values.size == 0 or values.min() == values.max():
        return None
    low, high = float(values.min()), float(values.max())
    return (low + high) / 2, high - low


def _named_regions(source: Source, volume: Volume, table: NamesTable) -> dict[str, np.ndarray]:
    """class -> bool [I, J, K]; regions of one class are joined, overlaps settled by the table."""
    regions: dict[str, np.ndarray] = {}
    for label in source.labels:
        for name, region in _read_label(label, volume):
            found = table.class_of(name, source.modality, source.origin)
            if found is not None:
                regions[found] = regions[found] | region if found in regions else region
    for over, under in table.overlaps:
        if over in regions and under in regions:
            regions[under] = regions[under] & ~regions[over]
    return regions


def _read_label(label: LabelFile, volume: Volume) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bool [I, J, K]) of each region that is not empty.

    Raises:
        DatasetError: another shape or place than the image, values without a name.
    """
    shape = volume.array.shape[:3]
    if label.kind == "rows":
        planes = read_sparse(label.path, len(label.names), (shape[1], shape[0]))
        yield from ((name, planes[row - 1].T[:, :, None] > 0) for row, name in label.names.items())
        return
    if label.kind == "seg":
        yield from _read_seg(label, volume)
        return
    values = _label_values(label, volume)
    if label.kind == "mask":
        yield label.names[1], values != 0
        return
    unnamed = sorted(set(np.unique(values).tolist()) - set(label.names) - {0})
    if unnamed:
        raise DatasetError(f"{label.path.name}: values {unnamed[:8]} have no name in labels.json or dataset.json")
    yield from ((name, values == value) for value, name in sorted(label.names.items()) if value)


def _label_values(label: LabelFile, volume: Volume) -> np.ndarray:
    labels = read_volume(label.path)
    shape = volume.array.shape[:3]
    if labels.is_colour or labels.array.shape != shape:
        got = list(labels.array.shape)
        raise DatasetError(f"{label.path.name}: label of shape {got}, its image has {list(shape)}")
    if labels.has_spacing and volume.has_spacing:
        corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])], float)
        distance = np.abs((labels.affine - volume.affine) @ corners.T).max()
        if distance > _MAX_AFFINE_DIFFERENCE_MM:
            raise DatasetError(f"{label.path.name}: label lies {distance:.3g} mm away from its image")
    values = np.nan_to_num(labels.array, copy=False) if labels.array.dtype.kind == "f" else labels.array
    if not np.array_equal(values, np.rint(values)):
        raise DatasetError(f"{label.path.name}: expected whole numbers, got fractions")
    return values.astype(np.int64)


def _read_seg(label: LabelFile, volume: Volume) -> Iterator[tuple[str, np.ndarray]]:
    """Each segment on the image's grid, by nearest neighbour."""
    result = pydicom_seg.SegmentReader().read(dcmread(label.path))
    lps = np.diag([-1.0, -1.0, 1.0]) @ volume.affine[:3]
    grid = sitk.Image([int(n) for n in volume.array.shape[:3]], sitk.sitkUInt8)
    grid.SetOrigin(lps[:, 3].tolist())
    grid.SetSpacing(volume.spacing_mm.tolist())
    grid.SetDirection((lps[:, :3] / volume.spacing_mm).ravel().tolist())
    for number in result.available_segments:
        segment = sitk.Resample(result.segment_image(number), grid, sitk.Transform(), sitk.sitkNearestNeighbor)
        yield label.names[number], sitk.GetArrayFromImage(segment).transpose(2, 1, 0) > 0


def _check_sides(regions: dict[str, np.ndarray], volume: Volume, table: NamesTable) -> None:
    """Left lies at smaller x in RAS. Swapped names are exchanged in place, or refused, as the table says."""
    if not volume.has_spacing or volume.array.shape[2] == 1:
        return
    for name in [n for n in regions if "left" in n.split("_")]:
        other = other_side(name)
        if other not in regions or not regions[name].any() or not regions[other].any():
            continue
        if _mean_x(regions[name], volume) > _mean_x(regions[other], volume):
            if table.swapped_sides == "reject":
                raise DatasetError(f"{name} lies to the right of {other}: names or orientation are swapped")
            regions[name], regions[other] = regions[other], regions[name]


def _mean_x(region: np.ndarray, volume: Volume) -> float:
    """RAS, mm."""
    index = np.array([np.average(np.arange(n), weights=_profile(region, a)) for a, n in enumerate(region.shape)])
    return float(volume.affine[0, :3] @ index + volume.affine[0, 3])


def _profile(region: np.ndarray, axis: int) -> np.ndarray:
    return region.sum(axis=tuple(a for a in range(3) if a != axis))


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


def split_of(source: Source, test_fraction: float) -> str:
    """``training`` or ``test``: the source's own, else by a digest of the patient, so that more data moves nobody."""
    if source.split is not None:
        return source.split
    number = int.from_bytes(hashlib.sha256(source.patient.encode()).digest()[:8], "big")
    return "test" if number / 2**64 < test_fraction else "training"
