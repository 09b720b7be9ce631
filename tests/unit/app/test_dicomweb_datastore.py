"""A PACS that fails in every way that HTTP allows, as a real server of a few lines; a real one is in tests/e2e."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import dicom_to_nifti

from lib import dicomweb_datastore, uploads
from lib.dicom_labels import identity
from lib.dicomweb_datastore import VersionedDicomWebDatastore
from lib.label_store import LabelStore, Upload

SHAPE = (128, 128, 3)
LABEL = np.random.default_rng(0).choice([0, 0, 1, 3], SHAPE).astype(np.uint8)
INFO = [{"name": "spleen", "idx": 3}, {"name": "liver", "idx": 1}]


class Pacs(ThreadingHTTPServer):
    """Stores what it gets, and answers as ``fault`` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault, self.stored = "", list[pydicom.Dataset]()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Pacs

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seg = pydicom.dcmread(io.BytesIO(body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]))
        match self.server.fault:
            case "busy":
                return self.send_error(503)
            case "hangs":
                time.sleep(3)
                return self.send_error(500)
            case "refuses":
                return self._answer({"00081198": {"vr": "SQ", "Value": [_failed(seg)]}})
        self.server.stored.append(seg)
        if self.server.fault == "dies after storing":
            self.connection.close()
            return None
        return self._answer({})

    def do_GET(self) -> None:
        found = [s for s in self.server.stored if str(s.SOPInstanceUID) in self.path]
        self._answer([{"00080018": {"vr": "UI", "Value": [s.SOPInstanceUID]}} for s in found])

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


def _failed(seg: pydicom.Dataset) -> dict:
    uid = {"vr": "UI", "Value": [seg.SOPInstanceUID]}
    return {"00081155": uid, "00081197": {"vr": "US", "Value": [0xA700]}}


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pacs]:
    monkeypatch.setattr(uploads, "FIRST_PAUSE_S", 0.05)
    server = Pacs()
    yield server
    server.shutdown()
    server.server_close()


def opened(series: Path, url: str, is_serving: bool = True) -> VersionedDicomWebDatastore:
    """A store that has fetched the series already; what it keeps lies beside that."""
    folder = series.parent
    stock = DICOMWebDatastore(DICOMwebClient(url), {"Modality": "CT"}, cache_path=str(folder / "cache"))
    store = VersionedDicomWebDatastore.adopt(stock, LabelStore(folder / "labels"))
    if "image" not in stock._datastore.objects:
        fetched = shutil.copytree(series, Path(stock._datastore.image_path()) / "image")
        store.add_image("image", dicom_to_nifti(str(fetched)), {})
    if is_serving:
        store.resume()
    return store


def submitted(store: VersionedDicomWebDatastore, folder: Path) -> int:
    (folder / "label.bin").write_bytes(LABEL.tobytes(order="F"))
    info: dict = {"label_info": INFO}
    store.save_label("image", str(folder / "label.bin"), "final", info)
    return int(info["version"])


def until_stored(store: VersionedDicomWebDatastore, version: int) -> None:
    for _ in range(500):
        if store.label_store.upload(version) == Upload("stored"):
            return
        time.sleep(0.01)
    raise AssertionError(store.label_store.upload(version))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("busy", "the PACS answers 503"),
        ("refuses", "the PACS does not take it (failure reason 42752)"),
        ("dies after storing", "the PACS does not answer"),
        ("hangs", ""),
    ],
)
def test_a_label_is_kept_told_of_and_stored_once(
    tmp_path: Path, series: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    """Breaks if a failing PACS loses a label, holds up its annotator, or gets it twice."""
    monkeypatch.setattr(dicomweb_datastore, "ANNOTATOR_WAITS_S", 0.5 if fault == "hangs" else 10)
    store = opened(series, pacs.url)
    pacs.fault = fault
    version = submitted(store, tmp_path)
    upload = store.label_store.upload(version)
    pacs.fault = ""
    assert upload is not None
    # Where the answer is lost, the next round may already have found it there.
    assert upload == Upload("waiting", reason) or (fault == "dies after storing" and upload == Upload("stored"))
    assert Path(store.get_label_uri("image", "final")).is_file()
    until_stored(store, version)
    (seg,) = pacs.stored
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["liver", "spleen"]
    about = identity(store.label_store.get("image", version))
    assert (seg.SeriesInstanceUID, seg.SOPInstanceUID) == (about.series_uid, about.instance_uid)
    assert store.get_label_info("image", "final")["SeriesInstanceUID"] == about.series_uid


def test_a_new_start_sends_what_waits_and_nothing_else(tmp_path: Path, series: Path, pacs: Pacs) -> None:
    """Breaks if showing kept labels at the start stores them again, or what waits is forgotten."""
    store = opened(series, pacs.url)
    first = submitted(store, tmp_path)
    until_stored(store, first)
    second = submitted(opened(series, pacs.url, is_serving=False), tmp_path)
    Path(store.get_label_uri("image", "final")).unlink()
    again = opened(series, pacs.url)
    until_stored(again, second)
    assert len(pacs.stored) == 2
    assert again.get_label_info("image", "final")["version"] == second
    assert Path(again.get_label_uri("image", "final")).is_file()


def test_without_pacs_work_goes_on_with_what_is_here(tmp_path: Path, series: Path, pacs: Pacs) -> None:
    """Breaks if a PACS that is down takes the list of images, or the server's description, with it."""
    store = opened(series, pacs.url)
    pacs.shutdown()
    pacs.server_close()
    submitted(store, tmp_path)
    assert store.list_images() == ["image"]
    assert store.get_labeled_images() == ["image"]
    assert store.status()["completed"] == 1
