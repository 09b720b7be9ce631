"""DICOM SEG of labels on the NIfTI that MONAI Label makes of a PACS's series."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monailabel.datastore.utils.convert import dicom_to_nifti

from imis_net.errors import ImageError
from imis_net.images import read_volume
from lib.dicom_labels import from_dicom_seg, to_dicom_seg
from lib.label_store import Version


def test_a_label_of_a_pacs_goes_out_and_in(tmp_path: Path, series: Path) -> None:
    """Breaks if the grid of MONAI Label's conversion is not the series', or names are lost on either way."""
    volume = read_volume(Path(dicom_to_nifti(str(series))))
    label = np.random.default_rng(0).choice([0, 0, 1, 3], volume.array.shape[:3]).astype(np.uint8)
    liver = {"name": "liver", "idx": 1, "color": [221, 130, 101], "code": ["10200004", "SCT", "Liver"]}
    spleen = {"name": "spleen", "idx": 3, "code": ["78961009", "SCT", "Spleen"]}
    version = Version(1, "image", "final", ".bin", "", None, "", 0.0, {"label_info": [spleen, liver]})
    file = tmp_path / "seg.dcm"
    file.write_bytes(to_dicom_seg(version, label.tobytes(order="F"), series, volume))  # OHIF's raw bytes
    names = [str(s.SegmentLabel) for s in pydicom.dcmread(io.BytesIO(file.read_bytes())).SegmentSequence]
    assert names == ["liver", "spleen"]
    info: dict[str, object] = {}
    np.testing.assert_array_equal(read_volume(from_dicom_seg(file, series, volume, info)).array, label)
    assert info == {"label_info": [liver, spleen]}


def test_an_image_that_is_no_series_is_refused(tmp_path: Path, series: Path) -> None:
    """Breaks if a folder of NIfTI studies answers with an opaque 500."""
    volume = read_volume(series)
    version = Version(1, "image", "final", ".bin", "", None, "", 0.0)
    with pytest.raises(ImageError, match="DICOM series"):
        to_dicom_seg(version, b"\1" * volume.array.size, tmp_path / "image.nii.gz", volume)
