"""Numerical parity with the reference network, through the command that users run."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden" / "public"

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the golden vectors in ../shared/golden/public")


@pytest.mark.parametrize("scene", ["d256", "s256"])
def test_every_golden_array_is_within_tolerance(run_script, scene):
    """Breaks if any stage of the network, the key map, the transforms or the segmenter departs from the reference."""
    done = run_script("check_parity", "--golden", GOLDEN, "--only", scene)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missing or out of tolerance" in done.stdout


def test_a_folder_without_a_manifest_is_refused(run_script, tmp_path):
    """Breaks if a wrong path counts as a pass."""
    done = run_script("check_parity", "--golden", tmp_path)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
