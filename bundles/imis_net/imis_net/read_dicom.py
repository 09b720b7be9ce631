"""DICOM: a single file (also multi-frame), or a folder with the files of one series.

pydicom reads the tags, on which everything is checked first, and copies what makes the picture into a clean file.
SimpleITK (GDCM) decodes that one: pixels of any transfer syntax, palettes, rescale slope and intercept; it also
inverts MONOCHROME1, so that high is bright. Given the file itself, GDCM answers a few changed bytes in it with
gigabytes and many seconds.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from imis_net.bounded_read import MAX_DEFLATE_RATIO, MAX_IMAGE_BYTES, checked_num_bytes
from imis_net.errors import ImageError
from imis_net.volume import Volume

MAX_NUM_FILES = 5000
"""Of a series' folder."""

MAX_COMPRESSION_RATIO = 2000
"""Beyond JPEG 2000 on a blank picture; a few more kB are granted to small files."""

_RAW_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TAGS = (
    "SOPClassUID",
    "Modality",
    "SeriesInstanceUID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagerPixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "FrameIncrementPointer",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "GridFrameOffsetVector",
    "DoseGridScaling",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
"""Everything that the pixels and the geometry follow from; nothing that names a patient."""

sitk.ProcessObject.GlobalWarningDisplayOff()  # on stderr, and with paths in them


@dataclass(frozen=True)
class _Tags:
    path: Path
    dataset: pydicom.Dataset
    num_bytes: int


def read_dicom_file(path: Path) -> Volume:
    """
    Raises:
        ImageError: no pixels, more of them than the file can hold.
    """
    tags = _read_tags(path)
    if tags is None:
        raise ImageError("DICOM without an image: expected a file with pixels")
    with tempfile.TemporaryDirectory() as folder:
        return _as_volume(
            sitk.ReadImage(_clean_copy(tags, Path(folder) / "0.dcm"), imageIO="GDCMImageIO"), tags.dataset
        )


def read_dicom_series(folder: Path) -> Volume:
    """The one series in a folder (no sub-folders), its slices in the order of their positions along their normal.

    Raises:
        ImageError: no DICOM image, several series, several images at one position, too much of it.
    """
    slices = _one_series(folder)
    if len(slices) == 1:
        return read_dicom_file(slices[0].path)
    total = sum(s.num_bytes for s in slices)
    if total > MAX_IMAGE_BYTES:
        raise ImageError(f"{len(slices)} files take {total} bytes: at most {MAX_IMAGE_BYTES} are read")
    ordered = _sorted_by_position(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    with tempfile.TemporaryDirectory() as name:
        reader.SetFileNames([_clean_copy(s, Path(name) / f"{k}.dcm") for k, s in enumerate(ordered)])
        return _as_volume(reader.Execute(), ordered[0].dataset)


def _read_tags(path: Path) -> _Tags | None:
    """What is needed to judge the file, or None if there are no pixels in it."""
    size = path.stat().st_size
    syntax = read_file_meta_info(path).get("TransferSyntaxUID", "")
    if syntax == DeflatedExplicitVRLittleEndian and size * MAX_DEFLATE_RATIO > MAX_IMAGE_BYTES:
        raise ImageError(f"deflated DICOM of {size} bytes: could unpack to more than {MAX_IMAGE_BYTES}")
    dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    if "Rows" not in dataset or "Columns" not in dataset:
        return None
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    bits = int(dataset.get("BitsAllocated") or 8)
    shape = (int(dataset.Columns), int(dataset.Rows), frames, samples)
    available = size if syntax in _RAW_SYNTAXES else 2**20 + size * MAX_COMPRESSION_RATIO
    # 1 bit in SEG; in YBR 4:2:2 two pixels share their colour.
    is_shared = str(dataset.get("PhotometricInterpretation")).endswith("_422")
    held_bytes = -(-prod(shape) * bits // (12 if is_shared else 8))
    checked_num_bytes(shape, max(bits // 8, 1), max(available, available * prod(shape) // max(held_bytes, 1)))
    return _Tags(path, dataset, held_bytes)


def _clean_copy(tags: _Tags, target: Path) -> str:
    """The same image in a file of pydicom's making, with whole pixel data; returns the name for SimpleITK.

    Raises:
        ImageError: fewer pixels or frames than the tags promise.
    """
    dataset = pydicom.dcmread(tags.path, specific_tags=[*_TAGS, "PixelData"])
    if "PixelData" not in dataset:
        raise ImageError("DICOM without pixels of whole numbers: expected PixelData")
    syntax = dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    if syntax.is_encapsulated:
        num_frames = int(dataset.get("NumberOfFrames") or 1)
        frames = [bytes(frame) for frame in generate_pixel_data_frame(dataset.PixelData, num_frames)]
        if len(frames) != num_frames:
            raise ImageError(f"{num_frames} frames promised, {len(frames)} found")
        dataset.PixelData = encapsulate(frames, has_bot=False)
    elif len(dataset.PixelData) < tags.num_bytes:
        raise ImageError(f"truncated: {tags.num_bytes} bytes of pixels promised, {len(dataset.PixelData)} found")
    meta = FileMetaDataset()
    # pydicom has unpacked deflated data by now.
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta = meta
    dataset.decode()  # elements are read lazily: those never looked at would be copied byte by byte
    dataset.is_implicit_VR = meta.TransferSyntaxUID == ImplicitVRLittleEndian
    dataset.is_little_endian = meta.TransferSyntaxUID != ExplicitVRBigEndian
    dataset.save_as(target, write_like_original=False)
    return str(target)


def _one_series(folder: Path) -> list[_Tags]:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    if len(files) > MAX_NUM_FILES:
        raise ImageError(f"{len(files)} files: at most {MAX_NUM_FILES} are read as one series")
    series: dict[str, list[_Tags]] = defaultdict(list)
    for path in files:
        try:
            tags = _read_tags(path)
        except InvalidDicomError:
            continue
        if tags is not None:
            series[str(tags.dataset.get("SeriesInstanceUID"))].append(tags)
    if len(series) != 1:
        raise ImageError(f"expected a folder with the DICOM files of one series, got {len(series)} series")
    return next(iter(series.values()))


def _sorted_by_position(slices: list[_Tags]) -> list[_Tags]:
    orientations = [np.array(s.dataset.get("ImageOrientationPatient") or [], np.float64) for s in slices]
    positions = [np.array(s.dataset.get("ImagePositionPatient") or [], np.float64) for s in slices]
    if any(o.shape != (6,) for o in orientations) or any(p.shape != (3,) for p in positions):
        raise ImageError("a file without position and orientation: expected them in every slice of a series")
    if not np.allclose(orientations, orientations[0], atol=1e-3):
        raise ImageError("slices of several orientations: expected parallel ones (is a localizer among them?)")
    distances = np.stack(positions) @ np.cross(orientations[0][:3], orientations[0][3:])
    order = np.argsort(distances, kind="stable")
    if not (np.diff(distances[order]) > 1e-4).all():
        raise ImageError("several images at one position: expected one volume, not a series of volumes")
    return [slices[i] for i in order]


def _as_volume(image: sitk.Image, dataset: pydicom.Dataset) -> Volume:
    array = sitk.GetArrayFromImage(image)  # [K, J, I] or [K, J, I, C]
    array = array if image.GetDimension() == 3 else array[None]
    array = np.moveaxis(array, (2, 1, 0), (0, 1, 2))
    if image.GetNumberOfComponentsPerPixel() >= 3:
        # Palettes have entries of 16 bits, of which the upper ones are the colour.
        array = array[..., :3] if array.dtype == np.uint8 else (array[..., :3] >> 8).astype(np.uint8)
    modality = str(dataset.get("Modality") or "") or None
    has_spacing = any(
        tag in dataset for tag in ("PixelSpacing", "ImagerPixelSpacing", "SharedFunctionalGroupsSequence")
    )
    return Volume(array, _affine(image), modality, has_spacing)


def _affine(image: sitk.Image) -> np.ndarray:
    dimension = image.GetDimension()
    affine = np.eye(4)
    affine[:dimension, :dimension] = np.reshape(image.GetDirection(), (dimension, dimension)) * image.GetSpacing()
    affine[:dimension, 3] = image.GetOrigin()
    return _LPS_TO_RAS @ affine
