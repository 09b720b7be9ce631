"""OHIF as MONAI Label ships it, with our panel, on a real Orthanc over DICOMweb."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from local_pacs import HAS_ORTHANC, run_alone


def test_click_box_text_propagate_and_submit(tmp_path: Path) -> None:
    """Breaks if OHIF's page, our panel, a voxel order or the way of a label into the archive breaks."""
    if not (shutil.which("chromium") and HAS_ORTHANC):
        pytest.skip("Chromium or Orthanc with its DICOMweb plugin is not installed: make e2e")
    run_alone(Path(__file__).with_name("ohif_journey.py"), tmp_path)
