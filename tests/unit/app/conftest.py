"""What tests of the app share."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A CT of 128 x 128 x 3: a slice and its two neighbours, files named against their order."""
    folder = tmp_path / "series"
    folder.mkdir()
    for k, name in enumerate(("c", "a", "b")):
        slice_ = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        x, y, z = (float(v) for v in slice_.ImagePositionPatient)
        slice_.ImagePositionPatient, slice_.InstanceNumber = [x, y, z + 5 * k], k + 1
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        slice_.save_as(folder / f"{name}.dcm")
    return folder
