"""scripts/segment.py as a user runs it: another folder, nothing installed, real files and bad ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "bundles" / "imis_net" / "models" / "imis_net_compact.safetensors"
SAMPLE = ROOT / "apps" / "imis" / "sample_studies" / "abdomen_ct_4.nii.gz"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "scripts" / "segment.py"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def volume_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright ellipsoid in noise, 60 x 80 x 5 voxels of 2 x 3 x 4 mm."""
    i, j = np.ogrid[:60, :80]
    disc = ((i - 25) ** 2 + (j - 50) ** 2 < 12**2)[..., None]
    noise = np.random.default_rng(0).normal(100, 10, (60, 80, 5))
    path = tmp_path_factory.mktemp("images") / "disc.nii.gz"
    nib.save(nib.Nifti1Image((noise + 300 * disc).astype(np.int16), np.diag([2.0, 3.0, 4.0, 1.0])), path)
    return path


@pytest.mark.skipif(not MODEL.is_file(), reason="needs the compact model's weights")
def test_a_volume_with_click_and_box_gives_mask_overlay_and_one_json_line(tmp_path: Path, volume_path: Path) -> None:
    """Fails if the mask is not the slice's size, areas are wrong, or anything else is printed on stdout."""
    prompt = ("--slice", "2", "--click", "25,50", "--click", "3,3,0", "--box", "38,63,12,37", "--window", "200,400")
    done = run(tmp_path, "--image", str(volume_path), *prompt, "--out", "mask.png", "--overlay", "overlay.png")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (80, 60)
    assert set(np.unique(mask)) == {0, 255}
    assert report["area_px"] == (mask > 0).sum()
    assert report["area_mm2"] == pytest.approx(report["area_px"] * 6)
    assert report["slice"] == 2
    assert 0 <= report["iou_prediction"] <= 1
    assert set(report["milliseconds"]) == {"read", "load_model", "encode", "predict", "write", "total"}
    assert Image.open(tmp_path / "overlay.png").size == (420, 560)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.png", "overlay.png"]


@pytest.mark.skipif(not (MODEL.is_file() and SAMPLE.is_file()), reason="needs the compact weights and the sample study")
def test_a_box_finds_the_liver_on_the_sample_slice(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Fails if box, picture or mask are transposed or shifted on the way: the liver lies off the diagonal."""
    value = json.loads((SAMPLE.parent / "labels.json").read_text())["labels"]["liver"]
    label = value == np.asarray(nib.load(SAMPLE.parent / "labels" / "final" / SAMPLE.name).dataobj)[..., 0].T
    rows, columns = np.nonzero(label)
    box = f"{columns.min()},{rows.min()},{columns.max()},{rows.max()}"
    done = run_script("segment", "--image", SAMPLE, "--box", box, "--out", tmp_path / "mask.png")
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.6


BAD = {
    "no prompt": ((), "no prompt"),
    "click outside": (("--click", "500,5"), "outside the image"),
    "click of words": (("--click", "a,b"), "--click"),
    "click of NaN": (("--click", "nan,5"), "finite"),
    "click of one number": (("--click", "5"), "--click"),
    "unknown click label": (("--click", "5,5,7"), "labels"),
    "flat box": (("--box", "5,5,5,40"), "no area"),
    "slice out of range": (("--click", "5,5", "--slice", "5"), "slice"),
    "window without width": (("--click", "5,5", "--window", "40,0"), "window"),
    "no such weights": (("--click", "5,5", "--weights", "none.safetensors"), "weights"),
    "unknown model": (("--click", "5,5", "--model", "nonesuch"), "model"),
    "no such folder": (("--click", "5,5", "--overlay", "none/o.png"), "folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    volume_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    """Fails if a mistake gives a traceback, exit code 0 or 1, or a file."""
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    done = run_script("segment", "--image", volume_path, *arguments, "--out", "mask.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.startswith("segment: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_is_one_sentence(tmp_path: Path) -> None:
    """Fails if a decoder's traceback or warning reaches the user."""
    (tmp_path / "text.nii.gz").write_text("no image")
    done = run(tmp_path, "--image", "text.nii.gz", "--click", "5,5", "--out", "mask.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("segment: text.nii.gz: not an image")
    assert not (tmp_path / "mask.png").exists()
