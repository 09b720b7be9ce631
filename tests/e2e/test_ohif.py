"""OHIF as MONAI Label ships it, with our panel, on a real Orthanc over DICOMweb."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JOURNEY = Path(__file__).with_name("ohif_journey.py")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def test_click_box_text_propagate_and_submit(tmp_path: Path) -> None:
    """Breaks if OHIF's page, our panel, a voxel order or the way of a label into the archive breaks."""
    if not (shutil.which("chromium") and shutil.which("Orthanc") and PLUGIN.is_file()):
        pytest.skip("Chromium or Orthanc with its DICOMweb plugin is not installed: make e2e")
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace may be made here, and Orthanc listens on every address")
    done = subprocess.run(
        [*alone, sys.executable, str(JOURNEY), str(tmp_path)], capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, (
        f"{done.stdout}\n{done.stderr[-6000:]}\n{(tmp_path / 'server.log').read_text()[-2000:]}"
    )
