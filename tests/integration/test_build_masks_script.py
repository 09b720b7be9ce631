"""scripts/build_masks.py from the shell, with the committed model and with Ray."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imis_net.data_engine.settings import SETTINGS_FILE
from imis_net.training.dataset import read_imed361m

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "build_masks.py"
spec = importlib.util.spec_from_file_location("build_masks", SCRIPT)
assert spec is not None
assert spec.loader is not None
build_masks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_masks)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three pictures of a disc with its mask, and one that cannot be read; names with a space and beyond ASCII."""
    root = tmp_path / "mine é"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    y, x = np.mgrid[:96, :96]
    for i in range(3):
        disc = (y - 40 - 8 * i) ** 2 + (x - 50) ** 2 < 20**2
        noise = np.random.default_rng(i).integers(0, 30, disc.shape)
        Image.fromarray((disc * (120 + 40 * i) + noise).astype(np.uint8)).save(root / "images" / f"case {i}.png")
        Image.fromarray(disc.astype(np.uint8)).save(root / "masks" / f"case {i}.png")
    (root / "labels.json").write_text(json.dumps({"labels": {"spleen": 1}}))
    (root / "images" / "torn.png").write_bytes((root / "images" / "case 0.png").read_bytes()[:100])
    coarse = SETTINGS_FILE.read_text().replace("grid_side: 32", "grid_side: 3")
    (tmp_path / "settings.yaml").write_text(coarse)
    return root


def arguments_for(source: Path, out: Path) -> list[str]:
    settings = source.parent / "settings.yaml"
    return ["--source", str(source), "--out", str(out), "--settings", str(settings), "--licence", "CC0"]


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_one_process_and_two_workers_write_the_same_bytes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks if the output depends on who made it, or a torn file is silently left out."""
    assert build_masks.main(arguments_for(source, tmp_path / "here")) == 3
    said = capsys.readouterr()
    assert "left out images_torn: torn.png: cannot be read (damaged)" in said.err
    assert said.out.startswith("3 images, ")
    tree = json.loads((tmp_path / "here" / "dataset.json").read_text())
    assert tree["labels"] == {"0": "background", "1": "spleen"}
    records = [r for s in ("training", "test") if tree[s] for r in read_imed361m(tmp_path / "here", s)]
    assert len(records) == 3
    pytest.importorskip("ray")
    command = [sys.executable, str(SCRIPT), *arguments_for(source, tmp_path / "ray"), "--workers", "2"]
    on_ray = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert on_ray.returncode == 3, on_ray.stderr
    assert digest(tmp_path / "ray") == digest(tmp_path / "here")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "there is no folder nowhere"),
        (["--model", "nothing"], "unknown model"),
        (["--names", "nowhere.yaml"], "nowhere.yaml: expected a table"),
        (["--out", "/proc/mask"], "cannot write"),
    ],
)
def test_what_cannot_begin_says_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Breaks if a wrong argument ends in a traceback, or a folder is made for nothing."""
    assert build_masks.main([*arguments_for(source, tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
