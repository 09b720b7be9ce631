"""lib.retraining and lib.model_routes: a run as the Train button starts it, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from monailabel.datastore.local import LocalDatastore

from imis_net.checkpoint import save_weights
from imis_net.networks.build import imis_net_compact
from imis_net.retraining.run_tracking import EXPERIMENT
from imis_net.retraining.schedule import RetrainingSchedule
from imis_net.segmenter import load_segmenter
from lib import model_routes
from lib.config import Config
from lib.infer import Engine
from lib.publication import Publication
from lib.retraining import RetrainTask, new_labels, read_status

SIDE = 64


@pytest.fixture
def config(tmp_path: Path) -> Config:
    torch.manual_seed(0)
    save_weights(imis_net_compact(SIDE), tmp_path / "base.safetensors", {}, half=True)
    return Config(weights=tmp_path / "base.safetensors", image_size=SIDE, retrain_minutes=0.05)


@pytest.fixture
def store(tmp_path: Path) -> LocalDatastore:
    """Four patients with a bright rectangle, labelled; the last judges."""
    (tmp_path / "studies").mkdir()
    for number, name in enumerate("abcd"):
        label = np.zeros((1, 64, 64), np.uint8)
        label[:, 8 : 40 + number, 6 + 3 * number : 50] = 1
        pixels = np.where(label > 0, 200, 20).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels), tmp_path / "studies" / f"{name}.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(label), tmp_path / f"{name}.nii.gz")
    store = LocalDatastore(str(tmp_path / "studies"))
    for name in "abcd":
        info = {"label_info": [{"name": "liver", "idx": 1}]}
        store.save_label(name, str(tmp_path / f"{name}.nii.gz"), "reference" if name == "d" else "final", info)
    return store


def test_a_run_leaves_a_report_a_status_and_counts_its_labels(
    config: Config, store: LocalDatastore, tmp_path: Path
) -> None:
    """Breaks if the Train button does nothing, viewers see no progress, or labels are counted as new for ever."""
    task = RetrainTask(config, str(tmp_path / "studies"))
    assert task.stats() == {}
    assert set(new_labels(task.root, store)) == {"a", "b", "c"}
    before = (tmp_path / "studies" / "datastore_v2.json").read_bytes()
    task.root.mkdir(parents=True)
    (task.root / "unfinished.safetensors").write_bytes(b"what a killed run left, torn")
    status = task({"model": "imis", "learn": ["a list", "that nobody chose from"]}, store)
    assert status["state"] in ("published", "kept")
    assert status["images_encoded"] == 3 + (status["reason"] != "validation did not improve; there is no candidate")
    assert not (task.root / "unfinished.safetensors").exists()
    assert "trunk" not in status
    assert new_labels(task.root, store) == {}
    assert task.stats()["epoch"] == task.stats()["total_epochs"] == 100
    assert (tmp_path / "studies" / "datastore_v2.json").read_bytes() == before
    again = task({"model": "imis"}, store)
    assert again["images_encoded"] == 0 or status["images_encoded"] == 3
    client, _ = _client(config, store, task)
    runs = client.get("/imis/models/reports").json()["runs"]
    assert [run["state"] for run in runs] == [again["state"], status["state"]]
    assert "validation Dice" in client.get(f"/imis/models/reports/{runs[1]['run']}").text
    assert client.get("/imis/models/reports/latest").status_code == 200
    assert client.get("/imis/models").json()["training"]["state"] == again["state"]


def _client(config: Config, store: LocalDatastore, task: RetrainTask) -> tuple[TestClient, Publication]:
    engine = Engine(load_segmenter(config.model, config.weights, "cpu", image_size=SIDE), 10_000_000)
    publication = Publication(config, task.root, engine)
    schedule = RetrainingSchedule(task.root, "", 0, dict, lambda: True)
    app = SimpleNamespace(
        publication=publication,
        schedule=schedule,
        engine=engine,
        retraining_root=task.root,
        datastore=lambda: store,
    )
    server = FastAPI()
    server.router.routes[:0] = model_routes.routes(lambda: app)  # type: ignore[arg-type, return-value]
    return TestClient(server), publication


def test_before_the_first_run_there_is_nothing_to_show(config: Config, store: LocalDatastore, tmp_path: Path) -> None:
    """Breaks if a fresh server answers 5xx, or a run's name opens a file of another folder."""
    client, _ = _client(config, store, RetrainTask(config, str(tmp_path / "studies")))
    models = client.get("/imis/models").json()
    assert (models["served"], models["versions"], models["training"]) == ("", [], {})
    assert models["schedule"]["new_labels"] == 3
    assert client.get("/imis/models/reports").json() == {"runs": []}
    for run in ("latest", "nothing", "..%2f..%2fbase"):
        assert client.get(f"/imis/models/reports/{run}").status_code == 404
    answer = client.post("/imis/models/rollback")
    assert (answer.status_code, "nothing to roll back" in answer.json()["detail"]) == (409, True)


@pytest.mark.parametrize("case", ["none", "one patient", "a lost base", "a full disk", "a full GPU", "bad minutes"])
def test_a_run_that_cannot_be_says_why(
    config: Config, store: LocalDatastore, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a failed run has no clear status, is not in MLflow, or leaves anything but the model that was there."""
    task = RetrainTask(config, str(tmp_path / "studies"))
    request: dict[str, object] = {"model": "imis"}
    expected = {
        "none": "no label to learn from",
        "one patient": "labels of one patient only",
        "a lost base": "is gone",
        "a full disk": "No space left",
        "a full GPU": "retrain_gpu_share",
        "bad minutes": "expected a number",
    }
    if case in ("none", "one patient"):
        for name in "abc" if case == "none" else "bc":
            store.remove_label(name, "final")
    elif case == "a lost base":
        config.weights.unlink()  # type: ignore[union-attr]
    elif case == "bad minutes":
        request["max_minutes"] = "soon"
    else:
        request["adapters"] = 4

        def full(*args: object) -> None:
            raise torch.OutOfMemoryError("a page") if "GPU" in case else OSError(28, "No space left on device")

        monkeypatch.setattr("imis_net.retraining.tuner.save_fine_tuned", full)
    with pytest.raises(SystemExit):
        task(request, store)
    status = read_status(task.root)
    assert status["state"] == "failed"
    assert expected[case] in str(status["reason"])
    assert status.get("trunk") == ("learns by adapters of rank 4" if "adapters" in request else None)
    client = MlflowClient(f"sqlite:///{task.root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", status["reason"])
    registry = task.root / "registry"
    assert not registry.is_dir() or len(list((registry / "versions").iterdir())) <= 1


def test_a_run_whose_process_is_gone_was_stopped(tmp_path: Path) -> None:
    """Breaks if a killed run is shown as running for ever."""
    facts = {"state": "running", "reason": "fine-tuning", "pid": 2**22 + 1, "percent": 40}
    (tmp_path / "status.json").write_text(json.dumps(facts))
    assert read_status(tmp_path)["state"] == "stopped"
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) == {}
