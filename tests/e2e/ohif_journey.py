# ruff: noqa: E501 - scripts for the browser
"""An annotator's way through OHIF, on a real Orthanc, alone in a network namespace: run by ``test_ohif.py``."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))
from conftest import CHROMIUM, FLAGS
from local_pacs import CENTRES, ORTHANC, SHAPE, loopback_up, running_orthanc, store, truth, write_series
from running_server import running_server


def main(folder: Path) -> None:
    loopback_up()
    study, series = write_series(folder / "series")
    with running_orthanc(folder):
        for file in sorted((folder / "series").iterdir()):
            store(file.read_bytes())
        state = ["--conf", "state_dir", str(folder / "state")]
        serving = running_server(folder, f"{ORTHANC}/dicom-web", *state, MONAI_LABEL_DICOMWEB_CACHE_EXPIRY="2")
        with serving as server, _page() as page:
            try:
                _walk(page, server.url, study, series)
            finally:
                page.screenshot(path=str(folder / "ohif.png"))


def _walk(page: Page, url: str, study: str, series: str) -> None:
    _open(page, url, study)
    liver, spleen = truth("liver"), truth("spleen")
    # Stock: a click, and the panel's own Run.
    page.locator(".monaiLabelPanel .tab > label.tab-label", has_text="Point Prompts").click()
    points = page.locator(".monaiLabelPanel .tab", has=page.locator("label.tab-label", has_text="Point Prompts"))
    points.locator("select.selectBox").select_option("imis")
    points.locator("tr.clickable-row", has_text="liver").first.click()
    _click(page, CENTRES["liver"])
    with page.expect_response(lambda r: "/infer/imis?" in r.url, timeout=60_000) as answer:
        points.locator("button.actionButton", has_text="Run").click()
    assert answer.value.status == 200, answer.value.text()
    _wait_for(page, "liver")
    mask = _mask(page, "liver")
    assert mask[CENTRES["liver"]], "the clicked voxel is not in the mask"
    print("click:", int(mask.sum()), "voxels", flush=True)
    # Ours: a box on one slice, then the volume.
    page.select_option("#imis-label", "spleen")
    page.uncheck("#imis-clicks")
    page.click("#imis-box")
    where = np.argwhere(spleen[..., CENTRES["spleen"][2]])
    _drag(page, (*where.min(0), CENTRES["spleen"][2]), (*where.max(0), CENTRES["spleen"][2]))
    _run(page, "#imis-run")
    k = CENTRES["spleen"][2]
    on_slice = _mask(page, "spleen")
    assert not np.delete(on_slice, k, axis=2).any(), "a box on one slice marked others"
    print("box: Dice", _dice(on_slice[..., k], spleen[..., k]), flush=True)
    assert _dice(on_slice[..., k], spleen[..., k]) > 0.8
    _run(page, "#imis-propagate")
    print("propagate: Dice", _dice(_mask(page, "spleen"), spleen), flush=True)
    assert _dice(_mask(page, "spleen"), spleen) > 0.75
    # A word: whatever is found, the request is understood and lands under its segment.
    page.click("#imis-clear")
    page.select_option("#imis-label", "liver")
    page.fill("#imis-text", "liver")
    with page.expect_request(lambda r: "/infer/imis?" in r.url) as request:
        _run(page, "#imis-run")
    assert '"text":"liver"' in request.value.post_data
    _submit(page, series)
    assert (liver & spleen).sum() == 0


def _submit(page: Page, series: str) -> None:
    used = [name for name in CENTRES if _mask(page, name).any()]
    page.click("#imis-submit")
    page.wait_for_function(
        "/submitted|error/.test(document.querySelector('#imis-message').textContent)", timeout=60_000
    )
    told = page.inner_text("#imis-message")
    assert told.startswith("submitted"), told
    stored = requests.get(f"{ORTHANC}/dicom-web/series", {"Modality": "SEG"}, timeout=30).json()
    assert len(stored) == 1, "expected one DICOM SEG in the archive"
    instance = requests.get(f"{ORTHANC}/instances?expand", timeout=30).json()
    seg_id = next(i["ID"] for i in instance if i["MainDicomTags"].get("SOPInstanceUID") and _is_seg(i["ID"]))
    tags = requests.get(f"{ORTHANC}/instances/{seg_id}/simplified-tags", timeout=30).json()
    names = {segment["SegmentLabel"] for segment in tags["SegmentSequence"]}
    assert names == set(used), f"segments: got {names}, expected {used}"
    assert tags["ReferencedSeriesSequence"][0]["SeriesInstanceUID"] == series
    print("submit:", sorted(names), flush=True)


def _is_seg(instance: str) -> bool:
    return requests.get(f"{ORTHANC}/instances/{instance}/content/0008-0060", timeout=30).text.strip("\0 ") == "SEG"


def _open(page: Page, url: str, study: str) -> None:
    page.goto(f"{url}/ohif/monai-label?StudyInstanceUIDs={study}", wait_until="domcontentloaded")
    page.locator("#monailabelServerURL").wait_for(timeout=120_000)
    notice = page.get_by_text("Confirm and Hide")
    if notice.count():
        notice.click()
    page.wait_for_function(
        "window.services?.cornerstoneViewportService?.getCornerstoneViewport('mpr-axial')?.getImageData?.()",
        timeout=120_000,
    )
    page.locator(".settingsTable button.actionButton").click()
    page.locator(".monaiLabelPanel .subtitle").wait_for(timeout=60_000)
    page.locator("#imis").wait_for(timeout=60_000)
    page.wait_for_function(
        "(() => { try { return !!window.services.segmentationService.getLabelmapVolume('1'); }"
        " catch { return false; } })()",
        timeout=60_000,
    )
    page.wait_for_timeout(1300)  # the stock panel sets its colours after a timer of a second


_POINT = """([voxel, viewport]) => {
  const view = window.services.cornerstoneViewportService.getCornerstoneViewport(viewport);
  const world = view.getImageData().imageData.indexToWorld(voxel), camera = view.getCamera(), n = camera.viewPlaneNormal;
  const d = n.reduce((sum, v, a) => sum + v * (world[a] - camera.focalPoint[a]), 0);
  view.setCamera({ focalPoint: camera.focalPoint.map((v, a) => v + n[a] * d), position: camera.position.map((v, a) => v + n[a] * d) });
  view.render();
  const at = view.worldToCanvas(world), frame = view.canvas.getBoundingClientRect();
  return [frame.left + at[0], frame.top + at[1]];
}"""


def _at(page: Page, voxel: tuple) -> tuple[float, float]:
    """Show the voxel's axial slice; where it is on the page."""
    page.evaluate("window.scrollTo(0, 0)")  # pressing a button may have scrolled the page to it
    x, y = page.evaluate(_POINT, [[int(v) for v in voxel], "mpr-axial"])
    return x, y


def _count(tool: str) -> str:
    return f"window.cornerstoneTools.annotation.state.getAllAnnotations().filter(a => a.metadata.toolName === '{tool}').length"


def _click(page: Page, voxel: tuple) -> None:
    at = _at(page, voxel)
    page.wait_for_timeout(300)
    page.mouse.click(*at)
    page.wait_for_function(f"{_count('ProbeMONAILabel')} > 0", timeout=20_000)  # it waits for a double click first
    page.wait_for_timeout(200)


def _drag(page: Page, start: tuple, end: tuple) -> None:
    first, last = _at(page, start), _at(page, end)
    page.wait_for_timeout(300)
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=5)
    page.mouse.up()
    page.wait_for_function(f"{_count('RectangleROI')} > 0", timeout=20_000)


def _run(page: Page, button: str) -> None:
    page.click(button)
    page.wait_for_function(
        "!/running|^drag|^$/.test(document.querySelector('#imis-message').textContent)", timeout=120_000
    )
    told = page.inner_text("#imis-message")
    assert "voxels" in told, told


_VALUES = """() => {
  const all = Uint8Array.from(window.services.segmentationService.getLabelmapVolume('1').voxelManager.getCompleteScalarDataArray());
  let text = '';
  for (let i = 0; i < all.length; i += 32768) text += String.fromCharCode.apply(null, all.subarray(i, i + 32768));
  const s = window.services.segmentationService.getSegmentations()[0];
  return [btoa(text), Object.fromEntries(Object.values(s.config?.segments ?? s.segments).filter(Boolean).map(x => [x.label, x.segmentIndex]))];
}"""


def _mask(page: Page, name: str) -> np.ndarray:
    """bool [I, J, K] as the viewer holds it."""
    text, indices = page.evaluate(_VALUES)
    values = np.frombuffer(base64.b64decode(text), np.uint8)
    return values.reshape(SHAPE, order="F") == indices[name]


def _wait_for(page: Page, name: str) -> None:
    for _ in range(100):
        if _mask(page, name).any():
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"no mask of {name} in the viewer")


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@contextmanager
def _page() -> Iterator[Page]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


if __name__ == "__main__":
    os.environ.setdefault("HOME", sys.argv[1])
    main(Path(sys.argv[1]))
