"""From a folder of pictures to the published layout, resumed, assembled, reported and reviewed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from imis_net.data_engine import layout
from imis_net.data_engine.assembly import assemble, read_index, read_records
from imis_net.data_engine.candidates import Proposals
from imis_net.data_engine.ingest import Reject, classes_of
from imis_net.data_engine.layout import flatten, read_masks
from imis_net.data_engine.names import load_names
from imis_net.data_engine.naming import propose_names
from imis_net.data_engine.pipeline import Propose, Run, make_folders, run_here
from imis_net.data_engine.provenance import InteractiveMask, Origin
from imis_net.data_engine.report import poor_because, write_report
from imis_net.data_engine.review import Decision, decide, write_index
from imis_net.data_engine.semantics import Precision
from imis_net.data_engine.settings import load_settings
from imis_net.data_engine.sources import find_sources
from imis_net.errors import DatasetError, ImageError
from imis_net.training.dataset import read_imed361m
from review_app import make_app

SETTINGS = load_settings()
SIZE = (40, 50)
UNNAMED = Precision(float("nan"), 0, 0)


def halves(image: np.ndarray) -> Proposals:
    """A model that sees a left and a right half, and refuses what is all red."""
    if image[0, 0].tolist() == [255, 0, 0]:
        raise ImageError("too red")
    left = np.zeros(image.shape[:2], bool)
    left[:, : left.shape[1] // 2] = True
    masks = [InteractiveMask(m, Origin.GENERATED, s) for m, s in ((left, 0.9), (~left, 0.8))]
    return Proposals(tuple(masks), {"nms": 3})


def make_halves() -> Propose:
    return halves


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three patients' pictures: a square liver in each, the third without label, and one that cannot be read."""
    root = tmp_path / "source"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(("a_1", "b_1", "c_1")):
        pixels = np.random.default_rng(i).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        mask = np.zeros(SIZE, np.uint8)
        mask[5:15, 5:15] = 1
        if name != "c_1":
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "labels.json").write_text(json.dumps({"labels": {"1": "liver", "2": "spleen"}}))
    return root


def build(source: Path, out: Path, make_propose: Callable[[], Propose] = make_halves) -> list[Reject]:
    make_folders(out)
    sources, table = find_sources(source, "CT", "CC BY 4.0"), load_names()
    run = Run(out, SETTINGS, table, classes_of(sources, table), make_propose, "digest")
    rejects = [f for _, f in run_here(run, sources) if isinstance(f, Reject)]
    return assemble(out, "test set", run.classes, rejects, run.digest, SETTINGS.ingest.duplicate_max_distance)


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_layout_is_the_published_one(source: Path, tmp_path: Path) -> None:
    """Breaks if training's reader, or the reference's conventions, cannot take what was made."""
    out = tmp_path / "out"
    rejects = build(source, out)
    assert [r.stem for r in rejects] == ["images_broken"]
    tree = json.loads((out / "dataset.json").read_text())
    assert tree["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert tree["modality"] == {"0": "CT"}
    assert tree["numTraining"] + tree["numTest"] == 3
    item = (tree["training"] + tree["test"])[0]
    ids = np.load(out / item["imask"])
    assert (ids.dtype, ids.shape) == (np.int64, (*SIZE, 1))
    assert item["label"].endswith(".(2, 40, 50, 1).npz")
    split = "training" if tree["training"] else "test"
    record = read_imed361m(out, split)[0]
    original = np.asarray(Image.open(source / "images" / "a_1.png"))
    everybody = [r for s in ("training", "test") if tree[s] for r in read_imed361m(out, s)]
    assert any(np.array_equal(r.image, original) for r in everybody)
    assert [(n, int(m.sum())) for n, m in record.masks()] == [("liver", 100)]


def test_every_mask_has_its_provenance_and_the_files_their_sums(source: Path, tmp_path: Path) -> None:
    """Breaks if the index lies about its files, or a mask cannot be explained."""
    out = tmp_path / "out"
    build(source, out)
    for record in read_index(out):
        for kind, expected in record["sha256"].items():
            assert hashlib.sha256((out / record[kind]).read_bytes()).hexdigest() == expected
        assert all(m["steps"] for m in record["masks"])
        assert (record["licence"], record["modality"], record["num_removed_before"]) == ("CC BY 4.0", "CT", {"nms": 3})
        masks = read_masks(out, record)
        assert [int(m.sum()) for m in masks] == [m["area_px"] for m in record["masks"]]
    named = {r["stem"]: [m["name"] for m in r["masks"]] for r in read_index(out)}
    assert named == {"images_a_1": ["liver", None, None], "images_b_1": ["liver", None, None], "images_c_1": [None] * 2}


def test_small_masks_lie_over_large_ones_and_targets_over_all() -> None:
    """Breaks if a nested mask vanishes below the one around it."""
    large, small = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    small[1, 1] = True
    assert np.unique(flatten([small, large], [False, False], (4, 4)), return_counts=True)[1].tolist() == [1, 15]
    assert set(np.unique(flatten([small, large], [False, True], (4, 4)))) == {2}
    assert flatten([], [], (4, 4)).shape == (4, 4, 1)


def test_a_run_goes_on_where_it_stopped(source: Path, tmp_path: Path) -> None:
    """Breaks if finished images are made again, changed ones are not, or the result differs from one clean run."""
    build(source, tmp_path / "whole")
    calls: list[int] = []

    def counting() -> Propose:
        return lambda image: (calls.append(1), halves(image))[1]

    out = tmp_path / "out"
    build(source, out, counting)
    (out / "records" / "images_b_1.json").unlink()
    (out / "image" / "images_a_1.png").unlink()
    build(source, out, counting)
    assert len(calls) == 5
    assert digest(out) == digest(tmp_path / "whole")
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(source / "images" / "c_1.png")
    assert "no contrast" in {r.stem: r.reason for r in build(source, out, counting)}["images_c_1"]


def test_what_the_model_refuses_is_listed(source: Path, tmp_path: Path) -> None:
    """Breaks if one image that a model cannot take ends the run."""
    red = np.zeros((*SIZE, 3), np.uint8)
    red[:] = (255, 0, 0)
    Image.fromarray(red).save(source / "images" / "a_1.png")
    reasons = {r.stem: r.reason for r in build(source, tmp_path / "out")}
    assert reasons["images_a_1"] == "no masks: too red"
    assert len(list(read_index(tmp_path / "out"))) == 2


def test_a_full_disk_is_told_and_leaves_nothing_half(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if an image whose files are not all there gets a record, or the rest is not tried."""
    write = layout.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.name == "x___images_b_1.npy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(layout, "write_atomically", full)
    out = tmp_path / "out"
    assert {r.stem: r.reason for r in build(source, out)}["images_b_1"] == "cannot be written: No space left on device"
    assert not (out / "records" / "images_b_1.json").exists()
    assert [r["stem"] for r in read_index(out)] == ["images_a_1", "images_c_1"]
    monkeypatch.undo()
    build(source, out)
    assert len(list(read_index(out))) == 3


def test_copies_are_left_out(source: Path, tmp_path: Path) -> None:
    """Breaks if the same picture under two names is counted twice."""
    (source / "images" / "z_1.png").write_bytes((source / "images" / "a_1.png").read_bytes())
    reasons = {r.stem: r.reason for r in build(source, tmp_path / "out")}
    assert reasons["images_z_1"] == "duplicate of images_a_1"


def test_the_report_names_its_worst_and_what_was_left_out(source: Path, tmp_path: Path) -> None:
    """Breaks if a poor data set looks good, or the report cannot be opened."""
    out = tmp_path / "out"
    rejects = build(source, out)
    said = write_report(out, SETTINGS.report, rejects, UNNAMED)
    assert said.startswith(
        "3 images, 2.7 masks per image (2.0 generated), coverage 1.00, agreement with the truth 0.10"
    )
    assert "2.7 masks per image, expected 5 or more" in said
    page = (out / "report.html").read_text()
    assert "images_broken" in page
    assert Image.open(out / "worst.jpg").size[0] == 5 * 256
    assert len((out / "masks.csv").read_text().splitlines()) == 1 + 8
    assert poor_because([], 0, SETTINGS.report) == ["no image is left"]


def test_an_agreement_that_is_unknown_is_no_fault(source: Path, tmp_path: Path) -> None:
    """Breaks if pictures without labels make a data set poor."""
    for mask in (source / "masks").iterdir():
        mask.unlink()
    out = tmp_path / "out"
    lenient = replace(SETTINGS.report, min_masks_per_image=1, max_rejected_fraction=0.5)
    assert "poor" not in write_report(out, lenient, build(source, out), UNNAMED)


def test_verdicts_are_kept_with_their_history(source: Path, tmp_path: Path) -> None:
    """Breaks if a rejected mask stays in the interactive masks, cannot come back, or history is overwritten."""
    out = tmp_path / "out"
    build(source, out)
    untouched = digest(out)
    stem, at = "images_a_1", "2000-01-01T00:00:00+00:00"
    record = decide(out, Decision(stem, 2, "reject", at, "ann"))
    ids = np.load(out / record["imask"])
    assert 2 not in ids
    assert {1, 3} <= set(np.unique(ids))
    assert hashlib.sha256((out / record["imask"]).read_bytes()).hexdigest() == record["sha256"]["imask"]
    decide(out, Decision(stem, 3, "rename", at, "ben", "left half"))
    decide(out, Decision(stem, 2, "accept", at, "ben"))
    write_index(out)
    record = next(read_index(out))
    assert [(e["verdict"], e["reviewer"]) for e in record["masks"][1]["history"]] == [
        ("reject", "ann"),
        ("accept", "ben"),
    ]
    assert record["masks"][1]["history"][1]["before"] == {"review": "reject", "name": None}
    assert record["masks"][2]["name"] == "left half"
    changed = {k for k, v in digest(out).items() if untouched[k] != v}
    assert changed == {"index.jsonl", f"records/{stem}.json"}, "accepted again, the pixels are what they were"
    build(source, out)
    assert next(read_index(out))["masks"][2]["name"] == "left half", "building again keeps verdicts"


def test_impossible_verdicts_are_refused(source: Path, tmp_path: Path) -> None:
    """Breaks if a verdict reaches a file outside the data set, or ground truth is renamed behind its label's back."""
    out = tmp_path / "out"
    build(source, out)
    at = "2000-01-01T00:00:00+00:00"
    with pytest.raises(DatasetError, match="no such image"):
        decide(out, Decision("../records/images_a_1", 1, "reject", at, "ann"))
    with pytest.raises(DatasetError, match="from 1 to 3"):
        decide(out, Decision("images_a_1", 9, "reject", at, "ann"))
    with pytest.raises(DatasetError, match="named by its label"):
        decide(out, Decision("images_a_1", 1, "rename", at, "ann", "spleen"))
    with pytest.raises(DatasetError, match="verdict"):
        Decision("a", 1, "maybe", at, "ann")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="name"):
        Decision("a", 1, "rename", at, "ann", "<script>")


def test_the_page_shows_and_writes(source: Path, tmp_path: Path) -> None:
    """Breaks if the page's requests do not reach the record, or another host's name does."""
    out = tmp_path / "out"
    build(source, out)
    with TestClient(make_app(out, "ann")) as client:
        assert "<title>Mask review" in client.get("/").text
        assert client.get("/images").json()["stems"] == ["images_a_1", "images_b_1", "images_c_1"]
        assert client.get("/image/images_a_1").content[:4] == b"\x89PNG"
        assert client.get("/mask/images_a_1/1").status_code == 200
        assert client.get("/mask/images_a_1/9").status_code == 404
        assert client.get("/record/..%2Fdataset").status_code == 404
        sent = {"stem": "images_a_1", "mask_id": 2, "verdict": "reject"}
        assert client.post("/verdict", json=sent).json()["masks"][1]["review"] == "reject"
        assert client.post("/verdict", json=sent | {"verdict": "maybe"}).status_code == 422
        assert client.get("/images", headers={"Host": "evil.example"}).status_code == 400
    assert next(read_index(out))["masks"][1]["review"] == "reject", "written when the server ends"
    with pytest.raises(DatasetError, match=r"index\.jsonl"):
        make_app(tmp_path, "ann")


def halves_with_names(image: np.ndarray) -> Proposals:
    """The same model, which knows two names: it draws the square as liver and the right half as spleen."""
    proposals = halves(image)
    square = np.zeros(image.shape[:2], bool)
    square[5:15, 5:15] = True
    return replace(proposals, drawn={"liver": square, "spleen": proposals.candidates[1].mask})


def test_unnamed_masks_get_a_proposed_name(source: Path, tmp_path: Path) -> None:
    """Breaks if a proposal lands on another mask, is lost by review, or is told without calibration."""
    out = tmp_path / "out"
    build(source, out, lambda: halves_with_names)
    assert propose_names(out, "digest", SETTINGS.semantics).coverage == 0, "two named masks calibrate nothing"
    assert {m["proposal"]["name"] for r in read_records(out) for m in r["masks"] if m["name"] is None} == {"unknown"}
    propose_names(out, "digest", replace(SETTINGS.semantics, min_precision=0.5, min_calibration_masks=2))
    rejects = build(source, out, lambda: halves_with_names)
    write_index(out)
    masks = next(read_index(out))["masks"]
    assert [m.get("proposal") for m in masks] == [
        None,
        {"name": "unknown", "confidence": 1.0},
        {"name": "spleen", "confidence": 1.0},
    ]
    write_report(out, SETTINGS.report, rejects, Precision(1.0, 1.0, 2))
    assert "spleen,1.0,generated" in (out / "masks.csv").read_text()
    assert "spleen 3; unknown 3. Where the name is known" in (out / "report.html").read_text()
