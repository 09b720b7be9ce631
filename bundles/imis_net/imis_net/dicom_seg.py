"""Label volumes as DICOM SEG and back, voxel by voxel, on the series that they were drawn on.

Slices are matched by where they lie, never by file name or order: unsorted and oblique series keep their labels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, SegmentationStorage, generate_uid
from skimage.color import lab2rgb, rgb2lab

from imis_net import __version__
from imis_net.categories import display_name
from imis_net.errors import ImageError

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
LEARNT = Code("123110", "DCM", "Artificial Intelligence")
MAX_OFF_PX = 0.01
"""How far a slice's corner may lie from its voxel."""
LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")


@dataclass(frozen=True)
class Segment:
    """What a value of a label stands for: ``rgb`` from 0 to 255; ``code`` (value, scheme, meaning) of the structure."""

    name: str
    rgb: tuple[int, int, int] | None = None
    code: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Identity:
    """What makes two files the same document: equal keys give equal UIDs."""

    key: str
    time: datetime

    @property
    def series_uid(self) -> UID:
        return self.uid("series")

    @property
    def instance_uid(self) -> UID:
        return self.uid("instance")

    def uid(self, part: str) -> UID:
        return generate_uid(entropy_srcs=[self.key, part])


def is_dicom_seg(path: Path) -> bool:
    """Of any kind, also of fractions, which are not read here."""
    return _sop_class(path) in (SegmentationStorage, LABEL_MAP_STORAGE)


def write_dicom_seg(
    label: np.ndarray, affine: np.ndarray, series: Path, segments: Mapping[int, Segment], identity: Identity
) -> bytes:
    """A binary DICOM SEG of a label volume [i, j, k] with ``affine`` (RAS, mm), on the folder of its series.

    Segment numbers are 1, 2, ... in the order of the values; a segment's tracking id is its value, so that reading
    gives the same values back. All that is written follows from the arguments.

    Raises:
        ImageError: nothing is labelled, or the label does not lie on the series.
    """
    values = [int(v) for v in np.unique(label) if v]
    if not values:
        raise ImageError("DICOM SEG: expected at least one labelled voxel, got none")
    sources = _sources(series)
    slices = _slices_of(sources, label.shape, affine)
    numbers = np.zeros(values[-1] + 1, np.uint8 if len(values) < 256 else np.uint16)
    numbers[values] = range(1, len(values) + 1)
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=numbers[np.stack([label[:, :, k].T for k in slices]).astype(np.uint16)],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _description(n, v, segments.get(v, Segment(f"label {v}")), identity) for n, v in enumerate(values, 1)
        ],
        series_instance_uid=identity.series_uid,
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=identity.instance_uid,
        instance_number=1,
        manufacturer="IMIS-Net",
        manufacturer_model_name="IMIS-Net",
        software_versions=__version__,
        device_serial_number="1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_description="Segmentation",
    )
    _identify(seg, identity)
    buffer = io.BytesIO()
    seg.save_as(buffer, write_like_original=False)
    return buffer.getvalue()


def _identify(seg: Dataset, identity: Identity) -> None:
    """The moment of saving in place of that of writing, in the server's time zone; no UID that is new each time."""
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = identity.uid("dimensions")
    day, time = identity.time.strftime("%Y%m%d"), identity.time.strftime("%H%M%S.%f")
    seg.SeriesDate = seg.ContentDate = seg.InstanceCreationDate = day
    seg.SeriesTime = seg.ContentTime = seg.InstanceCreationTime = time
    seg.SeriesDescription = "IMIS-Net label"


def read_dicom_seg(
    path: Path, series: Path, shape: Sequence[int], affine: np.ndarray
) -> tuple[np.ndarray, dict[int, Segment]]:
    """The labels [i, j, k] (uint16) of a DICOM SEG on its series, and what they stand for by value.

    Raises:
        ImageError: no DICOM SEG of type BINARY or LABELMAP, of another series, or with segments that overlap.
    """
    sources = _sources(series)
    slices = _slices_of(sources, shape, affine)
    read = _label_map if _sop_class(path) == LABEL_MAP_STORAGE else _binary
    try:
        described, by_source, drawn_on = read(path, sources)
    except (ValueError, KeyError, AttributeError, RuntimeError, IndexError, TypeError, InvalidDicomError) as error:
        raise ImageError(f"DICOM SEG: cannot be laid on this series: {error}") from error
    if not drawn_on <= {s.SOPInstanceUID for s in sources}:
        raise ImageError("DICOM SEG: expected one of this series, got one that was drawn on other images")
    values = np.zeros(max(d.segment_number for d in described) + 1, np.uint16)
    values[[d.segment_number for d in described]] = [_value(d) for d in described]
    label = np.zeros(tuple(shape), np.uint16)
    for k, frame in zip(slices, by_source, strict=True):
        label[:, :, k] = values[frame].T
    return label, {_value(d): _segment(d) for d in described}


_Read = tuple[list[hd.seg.SegmentDescription], np.ndarray, set[str]]
"""What the segments are; segment numbers [source, row, column]; the UIDs of the images that they were drawn on."""


def _binary(path: Path, sources: Sequence[Dataset]) -> _Read:
    seg = hd.seg.segread(str(path))
    by_source = seg.get_pixels_by_source_instance(
        source_sop_instance_uids=[s.SOPInstanceUID for s in sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    described = [seg.get_segment_description(n) for n in seg.segment_numbers]
    return described, by_source, {uid for _, _, uid in seg.get_source_image_uids()}


def _label_map(path: Path, sources: Sequence[Dataset]) -> _Read:
    """By pydicom: highdicom knows this newer kind from a version on that needs another pydicom than the host."""
    file = dcmread(path)
    described = [hd.seg.SegmentDescription.from_dataset(s) for s in file.SegmentSequence if s.SegmentNumber]
    frames = file.pixel_array.reshape(-1, file.Rows, file.Columns)
    unknown = set(np.unique(frames).tolist()) - {0, *(d.segment_number for d in described)}
    if unknown or not described:
        raise ValueError(f"values without a description: {sorted(unknown)[:8]}")
    by_uid = {
        groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID: frame
        for groups, frame in zip(file.PerFrameFunctionalGroupsSequence, frames, strict=True)
    }
    if len(by_uid) < len(frames):
        raise ValueError(f"{len(frames)} frames of {len(by_uid)} images; a label map has one of each")
    empty = np.zeros(frames.shape[1:], frames.dtype)
    by_source = np.stack([by_uid.get(s.SOPInstanceUID, empty) for s in sources])
    return described, by_source, set(by_uid)


def _sop_class(path: Path) -> UID | None:
    try:
        return dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID
    except (InvalidDicomError, OSError, AttributeError):
        return None


def _sources(series: Path) -> list[Dataset]:
    if not series.is_dir():
        raise ImageError("DICOM SEG: expected an image that is a folder of one DICOM series")
    found: list[Dataset] = []
    for path in sorted(p for p in series.iterdir() if p.is_file()):
        try:
            found.append(dcmread(path))
        except InvalidDicomError:
            continue
    if not found or any("ImagePositionPatient" not in source for source in found):
        raise ImageError("DICOM SEG: expected a DICOM series whose slices say where they lie")
    return found


def _slices_of(sources: Sequence[Dataset], shape: Sequence[int], affine: np.ndarray) -> list[int]:
    """For each file its k in the volume."""
    if len(sources) != shape[2] or any((s.Columns, s.Rows) != tuple(shape[:2]) for s in sources):
        raise ImageError(
            f"DICOM SEG: expected the series' size {[sources[0].Columns, sources[0].Rows, len(sources)]}, "
            f"got {list(shape[:3])}"
        )
    to_voxel, slices = np.linalg.inv(affine), []
    for source in sources:
        corners = np.array([_corner(source, 0, 0), _corner(source, shape[0] - 1, 0), _corner(source, 0, shape[1] - 1)])
        voxels = corners * LPS_TO_RAS @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        k = int(np.rint(voxels[0, 2]))
        expected = np.array([[0, 0, k], [shape[0] - 1, 0, k], [0, shape[1] - 1, k]])
        if np.abs(voxels - expected).max() > MAX_OFF_PX:
            raise ImageError("DICOM SEG: the label does not lie on the slices of the series")
        slices.append(k)
    if sorted(slices) != list(range(shape[2])):
        raise ImageError("DICOM SEG: expected one file for each slice of the volume")
    return slices


def _corner(source: Dataset, column: int, row: int) -> np.ndarray:
    """The centre of a pixel in mm, LPS."""
    along_row, along_column = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = (float(v) for v in source.PixelSpacing)
    return np.array(source.ImagePositionPatient, float) + column * column_mm * along_row + row * row_mm * along_column


def _description(number: int, value: int, segment: Segment, identity: Identity) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(segment.name) or f"label {value}",
        segmented_property_category=ANATOMY,
        segmented_property_type=Code(*segment.code) if segment.code else _code(segment.name),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence("IMIS-Net", LEARNT, __version__),
        tracking_id=f"value {value}",
        tracking_uid=identity.uid(f"segment {value}"),
    )
    if segment.rgb:
        lab = rgb2lab(np.array(segment.rgb) / 255)
        description.RecommendedDisplayCIELabValue = list(hd.color.CIELabColor(*lab).value)
    return description


def _text(name: str) -> str:
    """What DICOM can hold of it: a backslash would part two values there."""
    return "".join(c for c in name.replace("\\", "/") if c.isprintable()).strip()[:64]


def _segment(description: hd.seg.SegmentDescription) -> Segment:
    code, lab = description.segmented_property_type, description.get("RecommendedDisplayCIELabValue")
    rgb = None
    if lab:
        shares = np.array([int(v) for v in lab]) / 0xFFFF
        red, green, blue = np.rint(255 * lab2rgb(shares * [100, 255, 255] - [0, 128, 128])).astype(int).tolist()
        rgb = (red, green, blue)
    name = str(description.segment_label) or f"segment {description.segment_number}"
    return Segment(name, rgb, (code.value, code.scheme_designator, code.meaning))


def _code(name: str) -> Code:
    """The standard's code of that structure, such as Liver; of what it does not name, that of any structure."""
    keyword = "".join(word.capitalize() for word in display_name(name).replace("_", " ").replace("-", " ").split())
    try:
        return getattr(codes.SCT, keyword)
    except (AttributeError, RuntimeError):  # no such name, or several codes of that name
        return ANATOMY


def _value(description: hd.seg.SegmentDescription) -> int:
    """The voxel value of a segment: what we wrote, else the segment's number."""
    kind, _, value = str(description.tracking_id or "").partition(" ")
    is_ours = kind == "value" and value.isascii() and value.isdigit() and 0 < int(value) < 1 << 16
    return int(value) if is_ours else int(description.segment_number)
