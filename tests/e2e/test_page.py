"""The page at /imis/ in a real browser: real clicks on real pixels, and the label file that Submit leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from running_server import RunningServer, running_server

expect = pytest.importorskip("playwright.sync_api").expect

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "apps" / "imis" / "sample_studies"
FACTS = json.loads((SAMPLES / "labels.json").read_text())
CT = "abdomen_ct_1"


@dataclass(frozen=True)
class Plane:
    """Where a plane of ``width_mm`` x ``height_mm`` lies on the canvas: in the middle, as large as fits."""

    frame: dict[str, float]
    width_mm: float
    height_mm: float

    def point(self, right_mm: float, down_mm: float) -> tuple[float, float]:
        scale = min(self.frame["width"] / self.width_mm, self.frame["height"] / self.height_mm)
        left = self.frame["x"] + (self.frame["width"] - scale * self.width_mm) / 2
        top = self.frame["y"] + (self.frame["height"] - scale * self.height_mm) / 2
        return left + scale * right_mm, top + scale * down_mm


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(SAMPLES, folder / "studies")
    nib.save(_phantom()[0], folder / "studies" / "phantom.nii.gz")
    with running_server(folder, folder / "studies") as running:
        yield running


def _phantom() -> tuple[nib.Nifti1Image, np.ndarray]:
    """A CT of two organs in a body, lopsided on every axis, thick in one, stored as (z, -x, y); truth of the larger."""
    x, y, z = np.mgrid[:128, :112, :24].astype(float)

    def ellipsoid(centre: tuple, radii: tuple) -> np.ndarray:
        return sum(((v - c) / r) ** 2 for v, c, r in zip((x, y, z), centre, radii, strict=True)) < 1

    truth = ellipsoid((82, 44, 15), (20, 16, 6))
    voxels = np.where(ellipsoid((64, 56, 12), (58, 48, 40)), 20.0, -900.0)
    voxels[truth], voxels[ellipsoid((35, 70, 8), (10, 12, 5))] = 160, 220
    voxels += np.random.default_rng(0).normal(0, 6, voxels.shape)
    affine = np.array([[0, -1.5, 0, 60], [0, 0, 1.5, -50], [4, 0, 0, 30], [0, 0, 0, 1]])
    stored = voxels.transpose(2, 0, 1)[:, ::-1].astype(np.int16)
    return nib.Nifti1Image(stored, affine), truth.transpose(2, 0, 1)[:, ::-1]


def _open(page: object, url: str, study: str) -> dict[str, float]:
    page.goto(f"{url}/imis/")
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    assert page.inner_text("#message") == "Click on something"
    page.select_option("#study", study)
    expect(page.locator("#targets [role=option]")).to_have_text("target 1", timeout=30_000)
    expect(page.locator("#message")).to_have_text("Click on something", timeout=30_000)
    return page.locator("#marks").bounding_box()


def _told(page: object, before: str = "") -> str:
    expect(page.locator("#result")).not_to_have_text(re.compile(rf"^({re.escape(before)})?$"), timeout=180_000)
    if folder := os.environ.get("IMIS_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/page_{len(list(Path(folder).iterdir()))}.png")
    return page.inner_text("#result")


def _drag(page: object, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()


def _submitted(page: object, server: object, study: str) -> nib.Nifti1Image:
    page.click("#submit")
    expect(page.locator("#message")).to_contain_text("✓ saved", timeout=30_000)
    return nib.load(Path(server.studies) / "labels" / "final" / f"{study}.nii.gz")


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def _asked(server: object, study: str, params: dict) -> np.ndarray:
    """[I, J, K] straight from the server."""
    answer = requests.post(
        f"{server.url}/infer/imis",
        {"params": json.dumps(params)},
        params={"image": study, "output": "image"},
        timeout=60,
    )
    assert answer.ok, answer.text
    path = Path(server.studies).parent / "asked.nrrd"
    path.write_bytes(answer.content)
    return sitk.GetArrayFromImage(sitk.ReadImage(path)).T > 0


def test_clicks_box_word_undo_and_submit_on_the_sample(page: object, server: object) -> None:
    """Breaks if a click lands on another voxel, undo keeps a prompt, or Submit mixes targets up."""
    frame = _open(page, server.url, CT)
    plane = Plane(frame, 512, 512)  # rows are stored from the back to the front

    def at(i: float, j: float) -> tuple[float, float]:
        return plane.point(i + 0.5, 511.5 - j)

    aorta = FACTS["images"][CT]["clicks"]["aorta"]
    page.mouse.click(*at(*aorta[:2]))
    told = _told(page)
    assert re.fullmatch(r"predicted IoU [01]\.\d\d · \d+ ms", told)
    page.keyboard.down("Shift")
    page.mouse.click(*at(aorta[0] + 60, aorta[1]))
    page.keyboard.up("Shift")
    _told(page, told)
    page.click("#undo")
    assert page.inner_text("#result") == told
    for name in ("liver", "spleen"):
        page.fill("#name", name)
        page.click("#add button")
        if name == "liver":
            reference = np.asanyarray(nib.load(SAMPLES / "reference" / f"{CT}.nii.gz").dataobj)[..., 0]
            where = np.argwhere(reference == FACTS["labels"]["liver"])
            _drag(page, at(*where.min(0)), at(*where.max(0)))
        else:
            page.fill("#text", "spleen")
            page.click("#ask button")
        _told(page)
    saved = _submitted(page, server, CT)
    values = np.asanyarray(saved.dataobj)
    assert np.allclose(saved.affine, nib.load(SAMPLES / f"{CT}.nii.gz").affine)
    others = np.isin(values, (2, 3))
    assert ((values == 1) | others == _asked(server, CT, {"foreground": [aorta]}) | others).all()
    assert _dice(values[..., 0] == 2, reference == FACTS["labels"]["liver"]) > 0.75
    text = _asked(server, CT, {"text": "spleen", "slice": 0})
    assert (values == 3).sum() == text.sum()
    assert page.get_attribute("#propagate", "disabled") is not None


def test_box_in_the_coronal_plane_propagates_through_the_volume(page: object, server: object) -> None:
    """Breaks if a plane is mirrored, an axis mistaken, thick voxels shown square, or propagation lands elsewhere."""
    frame = _open(page, server.url, "phantom")
    image, truth = _phantom()
    page.click("#planes [data-direction='1']")
    middle = truth.shape[2] // 2
    for _ in range(middle - 44):
        page.keyboard.press("ArrowDown")
    assert page.inner_text("#position") == "slice 45 of 112"
    # Stored axes: 0 feet to head, 1 right to left, 2 back to front. The patient's right is on the left of the screen.
    plane = Plane(frame, 128 * 1.5, 24 * 4)
    rows, columns = np.nonzero(truth[:, :, 44])
    start = plane.point(1.5 * columns.min(), 4 * (24 - rows.min()))
    _drag(page, start, plane.point(1.5 * (columns.max() + 1), 4 * (24 - rows.max() - 1)))
    told = _told(page)
    page.click("#propagate")
    assert re.search(r"\d+ slices", _told(page, told))
    saved = _submitted(page, server, "phantom")
    assert np.allclose(saved.affine, image.affine)
    assert _dice(np.asanyarray(saved.dataobj) == 1, truth) > 0.8
