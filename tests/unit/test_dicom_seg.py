"""DICOM SEG out and back, on series as they come: oblique, in any file order."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pydicom
import pydicom_seg
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from imis_net.dicom_seg import Identity, Segment, is_dicom_seg, read_dicom_seg, write_dicom_seg
from imis_net.errors import ImageError
from imis_net.images import read_volume

SHAPE = (7, 6, 5)
SEGMENTS = {2: Segment("spleen", (157, 108, 162)), 5: Segment("liver")}
IDENTITY = Identity("one version", datetime(2026, 1, 2, 3, 4, 5))
SNOMED = {2: ("78961009", "SCT", "Spleen"), 5: ("10200004", "SCT", "Liver")}
STRAIGHT = np.eye(3)
_angle = np.deg2rad(20)
OBLIQUE = np.array([[1, 0, 0], [0, np.cos(_angle), np.sin(_angle)], [0, -np.sin(_angle), np.cos(_angle)]])


def _series(folder: Path, axes: np.ndarray) -> Path:
    """A CT of five slices; file names run against the slices' places."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(SHAPE[2]):
        d = pydicom.Dataset()
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.PatientID = d.PatientName = "phantom^"
        d.PatientBirthDate = d.PatientSex = d.AccessionNumber = d.StudyID = d.StudyDate = d.StudyTime = ""
        d.ReferringPhysicianName, d.PositionReferenceIndicator = "", ""
        d.Modality, d.SeriesNumber, d.InstanceNumber = "CT", 1, k + 1
        d.ImageOrientationPatient = [float(f"{v:.8f}") for v in axes[:2].ravel()]
        d.ImagePositionPatient = [float(f"{v:.6f}") for v in np.array([-20, 30, 40]) + 2.5 * k * axes[2]]
        d.PixelSpacing, d.SliceThickness = [0.8, 0.7], 2.5
        d.Rows, d.Columns = SHAPE[1], SHAPE[0]
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
        d.RescaleSlope, d.RescaleIntercept = 1, 0
        d.PixelData = np.full((SHAPE[1], SHAPE[0]), 10 * k, np.int16).tobytes()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
        d.is_little_endian, d.is_implicit_VR = True, False
        pydicom.dcmwrite(folder / f"{(3 * k + 2) % 5}.dcm", d, write_like_original=False)
    return folder


def _label() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 0, 2, 5], SHAPE).astype(np.uint8)


@pytest.mark.parametrize("axes", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_values_names_and_places_survive(tmp_path: Path, axes: np.ndarray) -> None:
    """Breaks if slices are matched by file order, axes are swapped, or values become segment numbers."""
    series, label = _series(tmp_path / "ct", axes), _label()
    label[:, :, 1] = 0  # a slice that the file leaves out
    volume = read_volume(series)
    (tmp_path / "seg.dcm").write_bytes(write_dicom_seg(label, volume.affine, series, SEGMENTS, IDENTITY))
    assert is_dicom_seg(tmp_path / "seg.dcm")
    assert not is_dicom_seg(series / "0.dcm")
    back, segments = read_dicom_seg(tmp_path / "seg.dcm", series, SHAPE, volume.affine)
    np.testing.assert_array_equal(back, label)
    assert segments == {value: replace(segment, code=SNOMED[value]) for value, segment in SEGMENTS.items()}


def test_one_version_is_one_document(tmp_path: Path) -> None:
    """Breaks if what is sent again after a lost answer lies in an archive twice, or two versions take one place."""
    series = _series(tmp_path / "ct", STRAIGHT)
    affine = read_volume(series).affine
    files = [
        write_dicom_seg(_label(), affine, series, SEGMENTS, identity)
        for identity in (IDENTITY, IDENTITY, replace(IDENTITY, key="another"))
    ]
    assert files[0] == files[1]
    first, second = (pydicom.dcmread(io.BytesIO(file)) for file in files[1:])
    assert (first.SOPInstanceUID, first.SeriesInstanceUID) == (IDENTITY.instance_uid, IDENTITY.series_uid)
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert (first.ContentDate, first.ContentTime) == ("20260102", "030405.000000")


def test_what_another_program_calls_a_structure_is_kept(tmp_path: Path) -> None:
    """Breaks if codes of a file that was taken in, or names beyond ASCII, are lost on the way out."""
    series = _series(tmp_path / "ct", STRAIGHT)
    volume = read_volume(series)
    told = {2: Segment("Läsion\\links\n\ud800", (255, 0, 0), ("108369006", "SCT", "Neoplasm")), 5: Segment("x" * 80)}
    (tmp_path / "seg.dcm").write_bytes(write_dicom_seg(_label(), volume.affine, series, told, IDENTITY))
    _, back = read_dicom_seg(tmp_path / "seg.dcm", series, SHAPE, volume.affine)
    assert back[2] == replace(told[2], name="Läsion/links")
    assert back[5].name == "x" * 64


def test_another_reader_finds_each_segment_in_its_place(tmp_path: Path) -> None:
    """Breaks if only our own reader understands the file: codes, or positions in mm."""
    series, label = _series(tmp_path / "ct", OBLIQUE), _label()
    volume = read_volume(series)
    (tmp_path / "seg.dcm").write_bytes(write_dicom_seg(label, volume.affine, series, SEGMENTS, IDENTITY))
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in file.SegmentSequence] == ["78961009", "10200004"]
    theirs = pydicom_seg.SegmentReader().read(file)
    for number, value in ((1, 2), (2, 5)):
        image = theirs.segment_image(number)
        for index in np.argwhere(label == value).tolist():
            place = volume.affine @ [*index, 1]
            at = image.TransformPhysicalPointToIndex((-place[0], -place[1], place[2]))
            assert image[at] == 1
        assert sitk.GetArrayFromImage(image).sum() == (label == value).sum()


def _as_label_map(binary: bytes, label: np.ndarray, series: Path) -> pydicom.Dataset:
    """The same segmentation as a label map with segments 3 and 7, one slice left out."""
    file = pydicom.dcmread(io.BytesIO(binary))
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    file.SegmentationType, file.NumberOfFrames = "LABELMAP", SHAPE[2] - 1
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    for segment, number in zip(file.SegmentSequence, (3, 7), strict=True):
        segment.SegmentNumber = number
        del segment.TrackingID, segment.TrackingUID  # ours, which say the value
    sources = sorted((pydicom.dcmread(f) for f in series.iterdir()), key=lambda d: d.InstanceNumber)
    groups = []
    for source in sources[1:]:
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, source.SOPInstanceUID
        derivation, group = pydicom.Dataset(), pydicom.Dataset()
        derivation.SourceImageSequence, group.DerivationImageSequence = [reference], [derivation]
        groups.append(group)
    file.PerFrameFunctionalGroupsSequence = groups
    numbers = np.select([label == 2, label == 5], [3, 7], 0).astype(np.uint8)
    file.PixelData = numbers[:, :, 1:].transpose(2, 1, 0).tobytes()
    return file


def test_a_label_map_is_read(tmp_path: Path) -> None:
    """Breaks if the newer kind of file is refused, its values are taken for places in the list of segments, or one of
    two frames of an image is lost."""
    series, label = _series(tmp_path / "ct", STRAIGHT), _label()
    label[:, :, 0] = 0
    affine = read_volume(series).affine
    file = _as_label_map(write_dicom_seg(label, affine, series, SEGMENTS, IDENTITY), label, series)
    file.save_as(tmp_path / "map.dcm")
    back, segments = read_dicom_seg(tmp_path / "map.dcm", series, SHAPE, affine)
    np.testing.assert_array_equal(back, np.select([label == 2, label == 5], [3, 7], 0))
    assert {value: segment.name for value, segment in segments.items()} == {3: "spleen", 7: "liver"}
    twice = pydicom.dcmread(tmp_path / "map.dcm")
    groups = twice.PerFrameFunctionalGroupsSequence
    groups[1] = groups[0]
    twice.save_as(tmp_path / "twice.dcm")
    with pytest.raises(ImageError, match="one of each"):
        read_dicom_seg(tmp_path / "twice.dcm", series, SHAPE, affine)
    del file.SegmentSequence[1]
    file.save_as(tmp_path / "map.dcm")
    with pytest.raises(ImageError, match=r"without a description: \[7\]"):
        read_dicom_seg(tmp_path / "map.dcm", series, SHAPE, affine)


def test_a_file_of_another_series_is_refused(tmp_path: Path) -> None:
    """Breaks if a label of one patient can be laid on the images of another."""
    one, other = _series(tmp_path / "one", STRAIGHT), _series(tmp_path / "other", STRAIGHT)
    affine = read_volume(one).affine
    (tmp_path / "seg.dcm").write_bytes(write_dicom_seg(_label(), affine, one, SEGMENTS, IDENTITY))
    with pytest.raises(ImageError, match="DICOM SEG"):
        read_dicom_seg(tmp_path / "seg.dcm", other, SHAPE, affine)


def test_what_does_not_lie_on_the_series_is_refused(tmp_path: Path) -> None:
    """Breaks if a shifted or an empty label is written all the same."""
    series = _series(tmp_path / "ct", STRAIGHT)
    affine = read_volume(series).affine
    shifted = affine.copy()
    shifted[0, 3] += 1
    with pytest.raises(ImageError, match="does not lie"):
        write_dicom_seg(_label(), shifted, series, SEGMENTS, IDENTITY)
    with pytest.raises(ImageError, match="got none"):
        write_dicom_seg(np.zeros(SHAPE, np.uint8), affine, series, SEGMENTS, IDENTITY)
