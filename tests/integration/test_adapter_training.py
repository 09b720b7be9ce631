"""Adapters in a fine-tuning of the shipped model on real slices, one in a process that is really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.images import read_volume
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import load_segmenter, trunk_digest, weights_path
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuned, FineTuning, Progress

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "apps" / "imis" / "sample_studies"
MODEL, SIDE = "imis_net_compact", 128
TARGETS = ("spleen", "liver", "aorta")


def record(image: str) -> Record:
    values = json.loads((SAMPLES / "labels.json").read_text())["labels"]
    names = {values[name]: name for name in TARGETS}
    label = read_volume(SAMPLES / "reference" / f"{image}.nii.gz").array[..., 0].T
    known = np.where(np.isin(label, list(names)), label, 0).astype(np.uint16)
    return Record(
        image, image, "samples", "CT", read_volume(SAMPLES / f"{image}.nii.gz").slice_rgb(0), ((known, names),)
    )


def train(candidate: Path, kill_at: int = 0) -> tuple[FineTuned, list[int]]:
    """The outcome, and the steps that it took in this process."""
    steps: list[int] = []

    def look(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = FineTuning(max_steps=4, validate_every=2, adapter_rank=4, learning_rate=2e-3)
    tuner = Tuner(MODEL, EmbeddingDisk(candidate.parent / "trunk", 10**8), settings, {"image_size": SIDE})
    tuner.on_progress = look
    tuner.unfinished, tuner.keep_every_s = candidate.with_name("unfinished.safetensors"), 0
    records = [record(f"abdomen_ct_{n}") for n in (1, 2, 3)]
    return tuner.train(weights_path(MODEL), records[:2], records[2:], candidate), steps


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "candidate.safetensors"
    tuned, steps = train(path)
    assert steps == [1, 2, 3, 4]
    assert tuned.best_dice > tuned.start_dice
    return path


def test_the_candidate_is_served_as_any_other(candidate: Path) -> None:
    """Breaks if what adapters taught is not in the candidate, or it is not of the layout that everything reads."""
    start = weights_path(MODEL)
    before, after = load_file(start), load_file(candidate)
    assert {k: (v.dtype, v.shape) for k, v in after.items()} == {k: (v.dtype, v.shape) for k, v in before.items()}
    old, new = (load_segmenter(MODEL, path, image_size=SIDE) for path in (start, candidate))
    assert trunk_digest(old.network) != trunk_digest(new.network)
    assert old.encoder_digest != new.encoder_digest


def test_a_killed_run_makes_the_same_candidate(candidate: Path, tmp_path: Path) -> None:
    """Breaks if a server that dies at night costs the whole run, or what goes on afterwards is another run."""
    path = tmp_path / "candidate.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bundles" / "imis_net")}
    killed = subprocess.run([sys.executable, __file__, path, "3"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    _, steps = train(path)
    assert steps == [3, 4]
    whole, ours = load_file(candidate), load_file(path)
    assert [key for key, value in whole.items() if not value.equal(ours[key])] == []


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
