"""DICOM: a single file (also multi-frame), or a folder with the files of one series.

pydicom reads the tags, on which everything is checked first; SimpleITK (GDCM) decodes the pixels of any transfer
syntax, applies rescale slope and intercept and palettes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
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
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
    "Modality",
    "SeriesInstanceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SharedFunctionalGroupsSequence",
)

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
    return _as_volume(sitk.ReadImage(str(path), imageIO="GDCMImageIO"), tags.dataset)


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
    reader.SetFileNames([str(s.path) for s in ordered])
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
    is_raw = syntax in _RAW_SYNTAXES and bits >= 8
    available = size if is_raw else 2**20 + size * MAX_COMPRESSION_RATIO
    if dataset.get("PhotometricInterpretation") in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        available = available * 3 // 2  # two pixels share their colour
    return _Tags(path, dataset, checked_num_bytes(shape, max(bits // 8, 1), available))


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
    elif dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        array = array.max() - (array - array.min())  # low values are the bright ones
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
