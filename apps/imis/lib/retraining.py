"""The train task ``imis``: what the Train buttons of 3D Slicer and OHIF, and the schedule, start.

MONAI Label runs it in a process of its own, where no model that serves is loaded. That process gives way to clicks,
tells how far it is in ``status.json``, and ends when the server does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.errors import ImisError
from imis_net.files import write_atomically, write_durably
from imis_net.retraining.cycle import Outcome, RetrainingCycle
from imis_net.retraining.gate import TargetKey
from imis_net.retraining.registry import ModelRegistry
from imis_net.retraining.run_report import render, worst_records
from imis_net.retraining.run_tracking import track
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import weights_path
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuning, Progress
from lib.config import Config, state_dir
from lib.labelled import fingerprints, read_labels
from lib.train_options import read_options, shown

NICENESS = 15
TELL_EVERY_S = 2.0
VALIDATE_EVERY, PATIENCE = 25, 12
"""Steps, and validations without gain: a person who waits sees the Dice move."""


def retraining_dir(config: Config, studies: str) -> Path:
    return state_dir(config, studies) / "retraining"


class RetrainTask(TrainTask):
    """Labels in, a judged version out; published when it is not inferior anywhere."""

    def __init__(self, config: Config, studies: str) -> None:
        super().__init__("Fine-tunes on the labels marked final; published only where it is no worse than before")
        self.settings = config
        self.root = retraining_dir(config, studies)

    def config(self) -> dict[str, object]:
        """What viewers show as options."""
        return shown(self.settings)

    def stats(self) -> dict[str, object]:
        """Progress as both viewers read it: ``epoch`` counts per cent."""
        status = read_status(self.root)
        return {"total_epochs": 100, "epoch": status.get("percent", 0), **status} if status else {}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, object]:
        """One retraining.

        Raises:
            ImisError: with the reason in one sentence; production is as it was.
        """
        status = Status(self.root)
        status.tell("running", "reading labels")
        try:
            outcome = self._run(request, datastore, status)
        except (ImisError, OSError, torch.OutOfMemoryError) as error:
            what = _sentence(error)
            print(f"retraining failed: {what}; the previous model stays", flush=True)
            with suppress(OSError):  # the disk may be full for this as well
                status.tell("failed", what)
            track(self.root, self.settings.model, Outcome("failed", what), status.curve, None)
            raise SystemExit(1) from error
        status.tell(outcome.state, outcome.reason)
        print(f"{outcome.state}: {outcome.reason}", flush=True)
        return read_status(self.root)

    def _run(self, request: Mapping[str, Any], datastore: Datastore, status: Status) -> Outcome:
        options = read_options(request, self.settings)
        seen, labels, parent = fingerprints(datastore), read_labels(datastore), os.getppid()
        trunk_url = self.settings.triton_url if self.settings.segmenter == "triton" else ""
        if options.adapter_rank:
            own = "; it runs in this process, not on Triton" if trunk_url else ""
            status.facts["trunk"] = f"learns by adapters of rank {options.adapter_rank}{own}"
            print(f"the trunk {status.facts['trunk']}", flush=True)
        tuner = Tuner(
            self.settings.model,
            EmbeddingDisk(self.root / "trunk", max(self.settings.disk_cache_bytes, 1)),
            FineTuning(
                max_steps=self.settings.retrain_steps,
                max_seconds=options.max_seconds,
                validate_every=VALIDATE_EVERY,
                patience=PATIENCE,
                learn_neck=options.learn_neck,
                adapter_rank=options.adapter_rank,
            ),
            self.settings.architecture,
            self.settings.device,
            trunk_url,
            status.progress,
            lambda: os.getppid() != parent,  # the server is gone
            self.root / "unfinished.safetensors",
        )
        cycle = RetrainingCycle(self.root, tuner.train, tuner.answers)
        outcome = cycle.run(weights_path(self.settings.model, self.settings.weights), labels)
        if outcome.state != "stopped" and tuner.unfinished:
            tuner.unfinished.unlink(missing_ok=True)
        pictured = {record.case: record for record in (*labels.learning, *labels.reference)}
        page = render(outcome, status.curve, pictured, _answers(outcome, tuner, cycle.registry, pictured))
        report = cycle.keep_report(outcome, page) / "report.html"
        write_durably(self.root / "seen.json", json.dumps(seen).encode())
        status.facts["images_encoded"] = tuner.num_encoded
        track(self.root, self.settings.model, outcome, status.curve, report)
        return outcome


class Status:
    """``status.json``: what a run is doing, for whoever asks the server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        self.curve: list[Progress] = []
        self.facts: dict[str, object] = {"pid": os.getpid(), "began": psutil.Process().create_time()}
        self._told = 0.0

    def progress(self, progress: Progress) -> None:
        self.curve.append(progress)
        if time.monotonic() - self._told < TELL_EVERY_S and progress.fraction < 1:
            return
        self._told = time.monotonic()
        left = round(progress.seconds_left)
        self.facts |= {"percent": int(100 * progress.fraction), "seconds_left": left, "step": progress.step}
        self.facts["best_metric"] = round(progress.best_dice, 4)
        self.tell("running", "fine-tuning")
        print(f"{self.facts['percent']} %, Dice {progress.best_dice:.3f}, {left} s left", flush=True)

    def tell(self, state: str, reason: str) -> None:
        if state not in ("running", "failed"):
            self.facts |= {"percent": 100, "seconds_left": 0}
        facts = {**self.facts, "state": state, "reason": reason, "time": int(time.time())}
        write_atomically(self.root / "status.json", json.dumps(facts).encode())


def read_status(root: Path) -> dict[str, object]:
    """The last word of the last run; a run whose process is gone was stopped or killed."""
    try:
        status = dict(json.loads((root / "status.json").read_text()))
    except (OSError, ValueError):
        return {}
    if status.get("state") == "running" and not _is_alive(status):
        status |= {"state": "stopped", "reason": "stopped before it was done; the previous model stays"}
    return status


def new_labels(root: Path, datastore: Datastore) -> dict[str, str]:
    """Fingerprints of final labels that are new, or changed, since the last run that went through."""
    try:
        seen = json.loads((root / "seen.json").read_text())
    except (OSError, ValueError):
        seen = {}
    return {image: of for image, of in fingerprints(datastore).items() if seen.get(image) != of}


def give_way(config: Config) -> None:
    """Clicks go first: this process takes what they leave, on some of the cores, in a part of a GPU's memory."""
    os.nice(NICENESS)
    torch.set_num_threads(config.retrain_threads or max(1, (os.cpu_count() or 2) // 2))
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(config.retrain_gpu_share, device)


def _sentence(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):  # its own message is a page
        return "the GPU memory that --conf retrain_gpu_share leaves to training is too little"
    return error.strerror or "cannot be written" if isinstance(error, OSError) else str(error)


def _is_alive(status: Mapping[str, Any]) -> bool:
    """Numbers of processes are given again: the time at which it began tells them apart."""
    try:
        return psutil.Process(int(status["pid"])).create_time() == status["began"]
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False


def _answers(
    outcome: Outcome, tuner: Tuner, registry: ModelRegistry, pictured: Mapping[str, Record]
) -> tuple[Mapping[TargetKey, np.ndarray], ...]:
    """What production and what the candidate answered to the worst targets; nothing where there was no candidate."""
    records = worst_records(outcome, pictured)
    if not records:
        return ()
    return tuple(tuner.box_masks(registry.weights(d), records) for d in (outcome.production, outcome.candidate))
