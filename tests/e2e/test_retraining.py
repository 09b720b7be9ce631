"""The whole loop on a real server: people label, the schedule fires, the gate judges, the next click is better."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from mlflow import MlflowClient
from PIL import Image
from poor_model import poor_weights
from requests_toolbelt.multipart.decoder import BodyPart, MultipartDecoder
from running_server import ROOT, RunningServer, running_server

from imis_net.metrics import dice
from imis_net.simulation import correction_click, random_click
from imis_net.training.dataset import Record, read_index

DATA = ROOT.parent / "shared" / "data" / "dev"
NUM_LABELS, NUM_REFERENCES, SIDE_PX = 20, 6, 256

pytestmark = pytest.mark.skipif(not (DATA / "index.json").is_file(), reason="the shared slices are not here")


def _slices() -> tuple[list[Record], list[Record]]:
    """Slices with a large target: to label, and of other patients as reference."""
    records = [r for r in read_index(DATA, ["train", "val"]) if "dataset/BTCV" in r.source]
    records = [r for r in records if max((m.sum() for _, m in r.masks()), default=0) > 6000]
    patients = sorted({r.patient for r in records})
    judges = patients[: max(2, len(patients) // 3)]
    reference = [r for r in records if r.patient in judges]
    learning = [r for r in records if r.patient not in judges]
    pick = lambda some, n: [some[i] for i in np.linspace(0, len(some) - 1, n).round().astype(int)]  # noqa: E731
    return pick(learning, NUM_LABELS), pick(reference, NUM_REFERENCES)


def _target(record: Record) -> tuple[str, np.ndarray]:
    return max(record.masks(), key=lambda named: named[1].sum())


class Annotator:
    """Somebody at a viewer: uploads, clicks, corrects, submits; all over HTTP."""

    def __init__(self, server: RunningServer, folder: Path) -> None:
        self.url, self.folder = server.url, folder

    def upload(self, record: Record) -> None:
        file = io.BytesIO()
        Image.fromarray(record.image).save(file, "PNG")
        data = {"params": json.dumps({"patient": record.patient})}
        files = {"file": (f"{record.case}.png", file.getvalue())}
        answer = requests.put(
            f"{self.url}/datastore/image", params={"image": record.case}, files=files, data=data, timeout=60
        )
        assert answer.ok, answer.text

    def click(self, case: str, clicks: list[list[int]], labels: list[int]) -> tuple[np.ndarray, str]:
        """bool [H, W] and the digest of the weights that answered."""
        params = {k: [[*xy, 0] for xy, at in zip(clicks, labels, strict=True) if at == v] for k, v in KINDS.items()}
        answer = requests.post(
            f"{self.url}/infer/imis", params={"image": case}, data={"params": json.dumps(params)}, timeout=120
        )
        assert answer.ok, answer.text
        parts = {_name(part): part.content for part in MultipartDecoder.from_response(answer).parts}
        path = self.folder / f"{threading.get_ident()}.nrrd"
        path.write_bytes(parts["image"])
        return sitk.GetArrayFromImage(sitk.ReadImage(path))[0] > 0, json.loads(parts["params"])["weights"]

    def work(self, record: Record, num_corrections: int = 1) -> tuple[float, str]:
        """One click and corrections of it; the last mask's Dice, and the weights that answered."""
        rng, (_, truth) = np.random.default_rng(0), _target(record)
        clicks, labels = [random_click(truth, rng).astype(int).tolist()], [1]
        mask, weights = self.click(record.case, clicks, labels)
        for _ in range(num_corrections):
            correction = correction_click(mask, truth, rng)
            if correction is not None:
                clicks.append(correction[0].astype(int).tolist())
                labels.append(int(correction[1]))
                mask, weights = self.click(record.case, clicks, labels)
        return dice(mask, truth), weights

    def submit(self, record: Record, mask: np.ndarray, tag: str = "final") -> None:
        path = self.folder / "label.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(mask.astype(np.uint8)[None]), path)
        facts = {"label_info": [{"name": _target(record)[0], "idx": 1}]}
        answer = requests.put(
            f"{self.url}/datastore/label",
            params={"image": record.case, "tag": tag},
            files={"label": ("label.nii.gz", path.read_bytes())},
            data={"params": json.dumps(facts)},
            timeout=60,
        )
        assert answer.ok, answer.text

    def models(self) -> dict:
        return requests.get(f"{self.url}/imis/models", timeout=60).json()


def _name(part: BodyPart) -> str:
    return part.headers[b"Content-Disposition"].split(b'name="')[1].split(b'"')[0].decode()


KINDS = {"foreground": 1, "background": 0}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    (tmp_path / "studies").mkdir()
    settings = {
        "weights": str(poor_weights(tmp_path / "poor.safetensors", SIDE_PX)),
        "image_size": str(SIDE_PX),
        "retrain_after": str(NUM_LABELS),
        "retrain_minutes": "5",
        "retrain_steps": "60",  # not seconds: the same on a slow machine
    }
    conf = [word for key, value in settings.items() for word in ("--conf", key, value)]
    with running_server(tmp_path, tmp_path / "studies", *conf) as server:
        yield server


def _retrained(annotator: Annotator, before: int) -> dict:
    """Wait for one more report than ``before``; the newest."""
    for _ in range(600):
        runs = requests.get(f"{annotator.url}/imis/models/reports", timeout=60).json()["runs"]
        status = annotator.models()["training"]
        assert status.get("state") != "failed", status
        if len(runs) > before:
            return runs[0]
        time.sleep(0.5)
    raise AssertionError(f"no retraining in five minutes: {annotator.models()}")


def _check_options(url: str) -> None:
    """What viewers show of the train task, and that an impossible choice is said at once."""
    shown = requests.get(f"{url}/info/", timeout=60).json()["trainers"]["imis"]["config"]
    assert shown["adapters"] == 0
    refused = requests.post(f"{url}/train/imis", json={**shown, "adapters": 1000}, timeout=60)
    assert (refused.status_code, refused.json()["detail"][:18]) == (422, "adapters: got 1000")


def test_it_learns_from_labels_and_cannot_be_made_worse(server: RunningServer, tmp_path: Path) -> None:
    """Breaks if labels do not lead to a better model by themselves, a click fails meanwhile, or poison is served."""
    annotator = Annotator(server, tmp_path)
    learning, reference = _slices()
    _check_options(server.url)
    for record in (*learning, *reference):
        annotator.upload(record)
    for record in reference:
        annotator.submit(record, _target(record)[1], "reference")
    poor = [annotator.work(r) for r in reference]
    for record in learning:
        annotator.work(record)
        annotator.submit(record, _target(record)[1])

    failures, stop = [], threading.Event()

    def keep_clicking() -> None:
        while not stop.wait(0.2):
            try:
                annotator.work(reference[0], 0)
            except (AssertionError, requests.RequestException) as error:
                failures.append(error)

    clicking = threading.Thread(target=keep_clicking)
    clicking.start()
    run = _retrained(annotator, 0)
    time.sleep(2)  # the server looks every second
    stop.set()
    clicking.join()
    assert not failures
    assert run["state"] == "published", run
    better = [annotator.work(r) for r in reference]
    assert {w for _, w in better}.isdisjoint({w for _, w in poor})
    assert np.mean([d for d, _ in better]) > np.mean([d for d, _ in poor]) + 0.05
    served = annotator.models()["served"]
    assert served == run["candidate"]

    for number, record in enumerate(learning):  # what no label check can see, and what it can
        truth = _target(record)[1]
        annotator.submit(record, ~truth if number % 4 else np.zeros_like(truth))
    run = _retrained(annotator, 1)
    assert run["state"] == "kept", run
    assert run["num_quarantined"] >= NUM_LABELS // 4
    assert annotator.models()["served"] == served
    assert annotator.work(reference[0])[1] == better[0][1]
    page = requests.get(f"{server.url}/imis/models/reports/latest", timeout=60).text
    assert "no pixel is labelled" in page
    assert "Worst cases" in page
    (database,) = tmp_path.rglob("mlflow.db")
    models = MlflowClient(f"sqlite:///{database}").search_model_versions("name='imis_net_compact'")
    assert served in [model.tags["digest"] for model in models]

    start = time.monotonic()
    back = requests.post(f"{server.url}/imis/models/rollback", timeout=60).json()
    assert time.monotonic() - start < 10  # a second on an idle machine: it says how long it took
    assert back["weights"] == poor[0][1]
    assert annotator.work(reference[0])[1] == poor[0][1]
    assert requests.post(f"{server.url}/imis/models/rollback", timeout=60).status_code == 409
