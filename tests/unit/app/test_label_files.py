"""Which files are labels of an image, and which are refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt

from imis_net.images import Volume, read_volume
from lib.label_files import LabelError, checked_label, label_array

SHAPE = (6, 5, 4)
OBLIQUE = np.array([[1.9, 0.1, 0.0, -10], [-0.1, 1.4, 0.2, 5], [0.0, -0.3, 3.0, 7], [0, 0, 0, 1.0]])
MASK = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
ORIENTATIONS = [
    "".join(codes)
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    for signs in np.ndindex(2, 2, 2)
    for codes in [[("RL", "AP", "SI")[axis][signs[axis]] for axis in order]]
]


@pytest.fixture
def image() -> Volume:
    return Volume(np.zeros(SHAPE, np.int16), OBLIQUE)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_any_of_the_48_storage_orders_is_the_same_label(tmp_path: Path, image: Volume, codes: str) -> None:
    """Breaks if a label that a viewer stored along other axes is mirrored, refused, or kept in an order of its own."""
    turned = nib.Nifti1Image(MASK, OBLIQUE).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(OBLIQUE), axcodes2ornt(codes))
    )
    nib.save(turned, tmp_path / "label.nii.gz")
    volume = read_volume(checked_label(tmp_path / "label.nii.gz", image))
    np.testing.assert_array_equal(volume.array, MASK)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)


def test_nrrd_of_another_library_is_kept_byte_by_byte(tmp_path: Path) -> None:
    """Breaks if the way of LPS and RAS is not the same for labels and images."""
    written = sitk.GetImageFromArray(MASK.transpose(2, 1, 0))
    written.SetSpacing((0.7, 0.8, 2.5))
    written.SetOrigin((-20, 30, 40))
    sitk.WriteImage(written, str(tmp_path / "image.nii.gz"))
    sitk.WriteImage(written, str(tmp_path / "label.nrrd"))
    label = tmp_path / "label.nrrd"
    assert checked_label(label, read_volume(tmp_path / "image.nii.gz")) == label


def test_raw_bytes_are_told_by_their_number(tmp_path: Path, image: Volume) -> None:
    """Breaks if OHIF's labels of another series are kept."""
    (tmp_path / "label.bin").write_bytes(MASK.tobytes(order="F"))
    kept = checked_label(tmp_path / "label.bin", image)
    np.testing.assert_array_equal(label_array(kept.read_bytes(), kept.suffix, SHAPE), MASK)
    (tmp_path / "label.bin").write_bytes(b"\0" * 119)
    with pytest.raises(LabelError, match=r"expected 120 bytes for \[6, 5, 4\], got 119"):
        checked_label(tmp_path / "label.bin", image)


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (MASK[:5], OBLIQUE, r"expected the image's grid, \[6, 5, 4\] .* got \[5, 5, 4\]"),
        (MASK, OBLIQUE + np.diag([0.1, 0, 0, 0]), "image's grid"),
        (MASK, OBLIQUE + np.array([[0, 0, 0, 3.0]] + [[0, 0, 0, 0]] * 3), "image's grid"),
        (MASK - 0.5, OBLIQUE, "expected values from 0 to 65535, got -0.5 to 1.5"),
        (MASK / 2, OBLIQUE, "expected whole numbers"),
        (MASK.astype(np.int32) * 70_000, OBLIQUE, "got 0 to 140000"),
    ],
)
def test_what_is_no_label_of_this_image_is_refused(
    tmp_path: Path, image: Volume, array: np.ndarray, affine: np.ndarray, message: str
) -> None:
    """Breaks if a label of another size, spacing, place or type is kept as if it fitted."""
    nib.save(
        nib.Nifti1Image(array.astype(np.int32 if array.dtype.kind in "iu" else np.float32), affine),
        tmp_path / "label.nii.gz",
    )
    with pytest.raises(LabelError, match=message):
        checked_label(tmp_path / "label.nii.gz", image)


def test_a_damaged_file_is_refused(tmp_path: Path, image: Volume) -> None:
    """Breaks if half an upload becomes a label."""
    nib.save(nib.Nifti1Image(MASK, OBLIQUE), tmp_path / "label.nii.gz")
    (tmp_path / "label.nii.gz").write_bytes((tmp_path / "label.nii.gz").read_bytes()[:100])
    with pytest.raises(LabelError, match=r"label: label\.nii\.gz: "):
        checked_label(tmp_path / "label.nii.gz", image)
