"""Folders of any layout to 8-bit pictures with named regions; what cannot be used is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from imis_net.data_engine.ingest import Reject, Sample, classes_of, read_samples, split_of
from imis_net.data_engine.names import load_names
from imis_net.data_engine.settings import load_settings
from imis_net.data_engine.sources import find_sources
from imis_net.errors import DatasetError

INGEST = load_settings().ingest
TABLE = load_names()
DICOM_SEG = Path(__file__).resolve().parents[4] / "shared" / "data" / "dev" / "dicom" / "dcm_seg_liver" / "liver.dcm"


def read(root: Path, **changes: object) -> list[Sample | Reject]:
    settings = replace(INGEST, **changes)  # type: ignore[arg-type]
    return [item for source in find_sources(root) for item in read_samples(source, TABLE, settings)]


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def volume(root: Path, affine: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A volume of 20 x 24 x 22 with two kidneys; RAS, so that left is at small i."""
    image = np.random.default_rng(0).normal(0, 100, (20, 24, 22)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:8, 5:15, 4:10] = 1
    label[12:18, 5:15, 4:10] = 2
    save(root / "case one.nii.gz", image, affine)
    save(root / "labels" / "final" / "case one.nii.gz", label, affine)
    (root / "labels.json").write_text(json.dumps({"labels": {"left kidney": 1, "right kidney": 2}}))
    return image, label


def picture(root: Path, name: str, pixels: np.ndarray) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def only_reason(items: list[Sample | Reject]) -> str:
    assert [type(i) for i in items] == [Reject]
    assert isinstance(items[0], Reject)
    return items[0].reason


def test_a_volume_becomes_slices_of_three_axes(tmp_path: Path) -> None:
    """Breaks if an axis is transposed, a slice without regions comes through, or regions leave their slice."""
    _, label = volume(tmp_path)
    samples = {s.stem: s for s in read(tmp_path) if isinstance(s, Sample)}
    assert len(samples) == 6 + 10 + 12
    axial = samples["case_one_z0006"]
    assert axial.image.shape == (24, 20, 3)
    assert [t.name for t in axial.targets] == ["kidney_left", "kidney_right"]
    assert (axial.targets[0].mask == (label[:, :, 6] == 1).T).all()
    assert samples["case_one_x0003"].image.shape == (22, 24, 3)
    assert [t.name for t in samples["case_one_x0003"].targets] == ["kidney_left"]


def test_elongated_slices_and_small_regions_are_left_out(tmp_path: Path) -> None:
    """Breaks if the published limits are not applied to the sides of the slice but of the volume."""
    volume(tmp_path)
    stems = {i.stem for i in read(tmp_path, max_aspect_ratio=1.1)}
    assert {s[-5] for s in stems} == {"x", "y"}, "24 x 20 is longer than 1.1, 24 x 22 and 22 x 20 are not"
    assert "no slice" in only_reason(read(tmp_path, min_target_fraction=0.9))


def test_the_full_range_becomes_black_and_white(tmp_path: Path) -> None:
    """Breaks if each slice is stretched by itself, so that neighbours differ."""
    image, _ = volume(tmp_path)
    sample = next(s for s in read(tmp_path) if isinstance(s, Sample) and s.stem.endswith("z0006"))
    expected = np.rint((image[:, :, 6].T - image.min()) / (image.max() - image.min()) * 255)
    assert np.abs(sample.image[:, :, 0] - expected).max() <= 1


def test_swapped_sides_are_refused_or_exchanged(tmp_path: Path) -> None:
    """Breaks if a volume whose left is the patient's right trains left as right."""
    volume(tmp_path, np.diag([-1.0, 1, 1, 1]))
    assert "lies to the right" in only_reason(read(tmp_path))
    swapping = replace(TABLE, swapped_sides="swap")
    source = find_sources(tmp_path)[0]
    sample = next(s for s in read_samples(source, swapping, INGEST) if s.stem.endswith("x0003"))
    assert isinstance(sample, Sample)
    assert [t.name for t in sample.targets] == ["kidney_right"]


def test_pictures_with_masks_spaces_and_unicode(tmp_path: Path) -> None:
    """Breaks if names with spaces or letters beyond ASCII are lost, or 16 bits are cut off."""
    rng = np.random.default_rng(0)
    picture(tmp_path, "images/Ärm 1.png", rng.integers(0, 60000, (20, 30)).astype(np.uint16))
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:12] = 255
    picture(tmp_path, "masks/Ärm 1/liver.png", mask)
    items = read(tmp_path)
    assert [i.stem for i in items] == ["images_Ärm_1"]
    assert isinstance(items[0], Sample)
    assert items[0].image.dtype == np.uint8
    assert items[0].image.max() == 255
    assert [(t.name, int(t.mask.sum())) for t in items[0].targets] == [("liver", 48)]


def test_overlaps_follow_the_table(tmp_path: Path) -> None:
    """Breaks if a liver keeps its tumour's pixels, or classes that the table does not name lose theirs."""
    picture(tmp_path, "images/a.png", np.arange(400, dtype=np.uint8).reshape(20, 20))
    for name, rows in (("liver", 10), ("liver_tumor", 4), ("spleen", 2)):
        mask = np.zeros((20, 20), np.uint8)
        mask[:rows] = 1
        picture(tmp_path, f"masks/a/{name}.png", mask)
    (sample,) = read(tmp_path)
    assert isinstance(sample, Sample)
    assert {t.name: int(t.mask.sum()) for t in sample.targets} == {"liver": 120, "liver_tumor": 80, "spleen": 40}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", "label of shape"),
        ("place", "10 mm away"),
        ("values", r"values \[7\] have no name"),
        ("fractions", "whole numbers"),
        ("truncated", "truncated|damaged"),
    ],
)
def test_unusable_labels_are_told(tmp_path: Path, fault: str, message: str) -> None:
    """Breaks if such a label is used, or stops the run."""
    _, label = volume(tmp_path)
    path = tmp_path / "labels" / "final" / "case one.nii.gz"
    if fault == "shape":
        save(path, label[:-1])
    elif fault == "place":
        moved = np.eye(4)
        moved[0, 3] = 10
        save(path, label, moved)
    elif fault == "values":
        label[0, 0, 0] = 7
        save(path, label)
    elif fault == "fractions":
        save(path, label + np.float32(0.5))
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert re.search(message, only_reason(read(tmp_path)))


def test_flat_and_unreadable_images_are_told(tmp_path: Path) -> None:
    """Breaks if a blank picture reaches the model, or a text file that is called .png stops the run."""
    picture(tmp_path, "images/flat.png", np.full((9, 9), 7, np.uint8))
    (tmp_path / "images" / "text.png").write_text("hello")
    reasons = {i.stem: i.reason for i in read(tmp_path) if isinstance(i, Reject)}
    assert "no contrast: 0" in reasons["images_flat"]
    assert "not an image" in reasons["images_text"]


def test_an_empty_label_leaves_the_picture(tmp_path: Path) -> None:
    """Breaks if a healthy patient's picture is lost, or gets an empty target."""
    picture(tmp_path, "images/a.png", np.arange(100, dtype=np.uint8).reshape(10, 10))
    picture(tmp_path, "masks/a/liver.png", np.zeros((10, 10), np.uint8))
    (sample,) = read(tmp_path)
    assert isinstance(sample, Sample)
    assert sample.targets == ()
    assert classes_of(find_sources(tmp_path), TABLE) == ("liver",)


def test_splits_keep_patients_together(tmp_path: Path) -> None:
    """Breaks if the split depends on anything but the patient, or nobody is tested."""
    picture(tmp_path, "images/a.png", np.eye(4, dtype=np.uint8))
    source = find_sources(tmp_path)[0]
    splits = [split_of(replace(source, patient=str(p), stem=str(p)), 0.1) for p in range(500)]
    assert 20 < splits.count("test") < 90
    assert split_of(replace(source, patient="7"), 0.1) == splits[7]
    assert split_of(replace(source, split="test"), 0.0) == "test"


def write_slice(path: Path, pixels: np.ndarray, **tags: object) -> None:
    """A CT slice, uint16 [H, W], as a DICOM file."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.SOPClassUID, dataset.Modality, dataset.PatientID = CTImageStorage, "CT", "p"
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = pixels.tobytes()
    pydicom.dcmwrite(path, dataset, write_like_original=False)


def test_dicom_and_other_files_share_a_folder(tmp_path: Path) -> None:
    """Breaks if files without a suffix are overlooked, a damaged one is not told, DICOM hides what lies beside it, or
    two series in one folder end the run."""
    volume(tmp_path)
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for folder, series in (("one", "1"), ("two", "2"), ("two", "3")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_slice(tmp_path / folder / f"IM{series}", pixels, SeriesInstanceUID=f"1.2.{series}")
    (tmp_path / "broken.dcm").write_bytes(b"no image at all")
    items = read(tmp_path, axes=(2,))
    assert {i.stem for i in items if isinstance(i, Sample)} == {
        "one_IM1",
        *(f"case_one_z{k:04d}" for k in range(4, 10)),
    }
    reasons = {i.stem: i.reason for i in items if isinstance(i, Reject)}
    assert set(reasons) == {"broken", "two_IM2", "two_IM3"}
    assert "2 series" in reasons["two_IM2"]


@pytest.mark.skipif(not DICOM_SEG.is_file(), reason="the DICOM SEG sample is not on this machine")
def test_a_dicom_seg_without_its_series_is_told(tmp_path: Path) -> None:
    """Breaks if labels of an incomplete export vanish without a word."""
    (tmp_path / "liver.dcm").write_bytes(DICOM_SEG.read_bytes())
    assert only_reason(read(tmp_path)) == "liver.dcm: a DICOM SEG whose series is not here"


@pytest.mark.skipif(not DICOM_SEG.is_file(), reason="the DICOM SEG sample is not on this machine")
def test_dicom_seg_lands_on_its_series(tmp_path: Path) -> None:
    """Breaks if segments are read in another order of slices than the series they refer to."""
    seg = pydicom.dcmread(DICOM_SEG)
    (tmp_path / "seg").mkdir()
    (tmp_path / "ct").mkdir()
    pydicom.dcmwrite(tmp_path / "seg" / "liver.dcm", seg)
    frames = seg.pixel_array
    plane = seg.SharedFunctionalGroupsSequence[0]
    for i, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        write_slice(
            tmp_path / "ct" / f"{9 - i}",
            frames[i].astype(np.uint16) * 100,
            SeriesInstanceUID=seg.ReferencedSeriesSequence[0].SeriesInstanceUID,
            ImagePositionPatient=group.PlanePositionSequence[0].ImagePositionPatient,
            ImageOrientationPatient=plane.PlaneOrientationSequence[0].ImageOrientationPatient,
            PixelSpacing=plane.PixelMeasuresSequence[0].PixelSpacing,
        )
    samples = [s for s in read(tmp_path, axes=(2,)) if isinstance(s, Sample)]
    assert len(samples) == np.count_nonzero(frames.any(axis=(1, 2)))
    for sample in samples:
        assert [t.name for t in sample.targets] == ["liver"]
        assert (sample.targets[0].mask == (sample.image[:, :, 0] > 0)).all(), "the picture was drawn from the segment"


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    """Breaks if nothing to do looks like success."""
    with pytest.raises(DatasetError, match="no image"):
        find_sources(tmp_path)
    with pytest.raises(DatasetError, match="no folder"):
        find_sources(tmp_path / "none")
