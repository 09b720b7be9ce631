"""The evaluation command on both layouts."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "imed361m_btcv"


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Two images in the published IMed-361M layout."""
    root = tmp_path / "data"
    (root / "image").mkdir(parents=True)
    (root / "label").mkdir()
    items = []
    for name, column in (("P_001_1", 10), ("P_002_1", 30)):
        labels = np.zeros((2, 48, 64), np.int32)
        labels[0, 5:25, column : column + 20] = 1
        labels[1, 30:40, 8:28] = 1
        Image.fromarray((labels.sum(0) * 200).astype(np.uint8)).convert("RGB").save(root / "image" / f"{name}.png")
        file = f"label/x___{name}.(2, 48, 64, 1).npz"
        sparse.save_npz(root / file, sparse.csr_matrix(labels.reshape(2, -1)))
        items.append({"image": f"image/{name}.png", "label": file})
    facts = {"name": "P", "modality": {"0": "ct"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}
    (root / "dataset.json").write_text(json.dumps({**facts, "training": [], "test": items}))
    return root


def test_ellipse_on_the_published_layout_repeats_byte_by_byte(run_script, tmp_path, dataset):
    """Breaks if the reader misplaces a class, or a seed no longer fixes the scores."""
    rows = []
    for name in ("first", "second"):
        done = run_script("evaluate", "--dataset", dataset, "--segmenter", "ellipse", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        with (tmp_path / name / "records.csv").open() as file:
            rows.append([{k: v for k, v in row.items() if k != "milliseconds"} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]
    assert [(r["case"], r["label"], r["num_pixels"]) for r in rows[0]] == [
        ("P_001_1", "liver", "400"),
        ("P_001_1", "spleen", "200"),
        ("P_002_1", "liver", "400"),
        ("P_002_1", "spleen", "200"),
    ]
    assert sorted(p.name for p in (tmp_path / "first").iterdir()) == [
        "dice_by_round.png", "dice_by_size.png", "records.csv", "summary.csv", "summary.md", "worst"
    ]  # fmt: skip
    assert len(list((tmp_path / "first" / "worst").iterdir())) == 4
    assert "GFLOP" in (tmp_path / "first" / "summary.md").read_text()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published sample in ../shared/data/imed361m_btcv")
def test_the_untouched_sample_is_read(run_script, tmp_path):
    """Breaks if the real files differ from what the reader expects; an ellipse scores about 0.75 on these organs."""
    done = run_script("evaluate", "--dataset", PUBLISHED, "--segmenter", "ellipse", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "summary.csv").open() as file:
        overall = next(r for r in csv.DictReader(file) if r["group"] == "all" and r["level"] == "mask")
    assert 0.65 < float(overall["dice"]) < 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "nowhere"), "expected an index.json"),
        (("--weights", "missing.safetensors", "--segmenter", "compact"), "no weights"),
        (("--strategy", "text", "--segmenter", "ellipse"), "nothing to score"),
        (("--segmenter", "sam"), "no weights for sam"),
        (("--rounds", "-1"), "expected 0 or more"),
        (("--image-size", "512", "--segmenter", "ellipse"), "can be resized"),
    ],
)
def test_unusable_input_is_one_sentence_and_writes_nothing(run_script, tmp_path, dataset, arguments, message):
    """Breaks if a failed evaluation leaves half a result folder or a traceback."""
    done = run_script("evaluate", "--dataset", dataset, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
