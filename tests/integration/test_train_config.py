"""configs/train.yaml as users run it, on the published layout: to its end, killed and taken up, on two processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image
from safetensors.torch import load_file
from scipy import sparse

from imis_net.checkpoint import load_weights
from imis_net.networks.build import imis_net_compact

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "imis_net"
NUM_TRAINING, NUM_EPOCHS, BATCH = 5, 2, 2
NUM_STEPS = NUM_EPOCHS * -(-NUM_TRAINING // BATCH)


def command(data: Path, out: Path, *arguments: object, overlays=("smoke",)) -> list[str]:
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *overlays)]
    options = ["--config_file", str(files), "--data_root", data, "--output_dir", out, *arguments]
    return ["-m", "monai.bundle", "run", *map(str, options)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(BUNDLE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments: object) -> subprocess.CompletedProcess:
    done = [sys.executable, *map(str, arguments)]
    return subprocess.run(done, env=environment(), capture_output=True, text=True, check=False)


QUIET = ("--trainer#mlflow", False, "--trainer#tensorboard", False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small data set in IMed-361M's layout with interactive masks."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("image", "label", "imask"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    items = [_write_item(root, f"p{i}_7", rng) for i in range(NUM_TRAINING + 1)]
    facts = {"name": "a set", "modality": {"0": "ct"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}
    (root / "dataset.json").write_text(json.dumps({**facts, "training": items[:-1], "test": items[-1:]}))
    return root


def _write_item(root: Path, stem: str, rng: np.random.Generator) -> dict[str, str]:
    regions = np.zeros((48, 40), np.int64)
    for value in (1, 2, 3):
        y, x = rng.integers(0, 24, 2)
        regions[y : y + 20, x : x + 14] = value
    item = {"image": f"image/{stem}.png", "label": f"label/{stem}.(2, 48, 40, 1).npz", "imask": f"imask/{stem}.npy"}
    Image.fromarray((regions * 60 + rng.integers(0, 20, regions.shape)).astype(np.uint8)).save(root / item["image"])
    masks = np.stack([regions == 1, regions == 2]).astype(np.uint8)
    sparse.save_npz(root / item["label"], sparse.csr_matrix(masks.reshape(2, -1)))
    np.save(root / item["imask"], regions[..., None])
    return item


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, run(*command(data, out))


def steps(out: Path) -> list[list[str]]:
    return list(csv.reader((out / "steps.csv").read_text().splitlines()))


def test_smoke_trains_logs_and_validates(uninterrupted):
    """Breaks if train.yaml or smoke.yaml names what is not there, or bar, TensorBoard, MLflow, validation by epoch or
    loadable weights are missing."""
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, done = uninterrupted
    assert done.returncode == 0, done.stderr[-3000:]
    assert "dice by round" in done.stderr
    assert [int(row[1]) for row in steps(out)] == list(range(1, NUM_STEPS + 1))
    assert all(len(row) == 3 + 3 for row in steps(out)), "a Dice after the first prompt and two corrections"
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == [NUM_STEPS // 2, NUM_STEPS]
    load_weights(imis_net_compact(64), out / "best.safetensors")
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert len(events.Scalars("validation/box")) == NUM_EPOCHS
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("imis_net").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation/box"] == pytest.approx(entries[-1]["val_box"], abs=1e-4)


def test_killed_training_goes_on_as_if_nothing_had_been(data, uninterrupted, tmp_path):
    """Breaks if a checkpoint lacks a part of the state, the data order depends on the process, a kill leaves a file
    that cannot be read, or a step stands in the log twice."""
    options = command(data, tmp_path, *QUIET, "--trainer#checkpoint_every", 4)
    process = subprocess.Popen([sys.executable, *options], env=environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None and _num_lines(tmp_path / "steps.csv") < NUM_STEPS - 1:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "ended before it could be killed"
    done = run(*options)
    assert done.returncode == 0, done.stderr[-3000:]
    reference, _ = uninterrupted
    assert steps(tmp_path) == steps(reference)
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (tmp_path, reference))
    assert all(value.equal(theirs[key]) for key, value in ours.items())


def _num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_two_processes_train_as_one(data, uninterrupted, tmp_path):
    """Breaks if gradients are not summed over processes, both see the same images, or both write."""
    options = command(data, tmp_path, *QUIET, "--images_per_process", 1, overlays=("smoke", "multi_gpu_train"))
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    reference, _ = uninterrupted
    ours, theirs = (np.array(steps(folder), float) for folder in (tmp_path, reference))
    assert ours[:, :2].tolist() == theirs[:, :2].tolist()
    np.testing.assert_allclose(ours[:, 2], theirs[:, 2], rtol=0, atol=1e-5)


def refused(capfd, data: Path, out: Path, overlays=("smoke",), **changes: object) -> str:
    """What a user reads when the recipe with these changes ends with exit status 2."""
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *overlays)]
    # configs/logging.conf closes the log handlers of the process it starts in, absl's and with it pytest's own stderr
    recipe = ConfigWorkflow(
        files, workflow_type=None, logging_file=False, data_root=str(data), output_dir=str(out), **changes
    )
    recipe.initialize()
    with pytest.raises(SystemExit) as ended:
        recipe.run()
    assert ended.value.code == 2
    return capfd.readouterr().err


def test_another_recipe_does_not_go_on_from_here(data, uninterrupted, capfd):
    """Breaks if a changed recipe silently continues from the old one's weights, and a finished one learns on."""
    out, _ = uninterrupted
    assert "is of another recipe" in refused(capfd, data, out, seed=2)


COMPACT = {"network": "$build.imis_net_compact", "image_size": 64, "num_workers": 0}


@pytest.mark.parametrize(
    ("overlays", "changes", "message"),
    [
        ((), {**COMPACT, "start_weights": "nowhere.safetensors"}, "start_weights: no file nowhere.safetensors"),
        (("smoke",), {"precision": "float8"}, "precision: expected one of float32, bfloat16, got 'float8'"),
        (("smoke",), {"image_size": 100}, "image_size: expected a multiple of 16, got 100"),
        (("smoke",), {"data_root": "nowhere"}, "nowhere: expected a dataset.json of the IMed-361M layout"),
        (("smoke", "index_data"), {}, "expected an index.json with cases"),
        (("smoke",), {"validation_records": "@training_records"}, "patients in training and validation"),
    ],
)
def test_bad_settings_are_one_sentence(data, tmp_path, capfd, overlays, changes, message):
    """Breaks if a wrong setting ends in a traceback, an exit status of 1, or half-written weights."""
    assert message in refused(capfd, changes.pop("data_root", data), tmp_path / "out", overlays, **changes)
    assert not list(tmp_path.glob("out/*.safetensors"))
