"""Deployments that label, retrain and are killed at random, with everything real but the network.

Each fire is a server process of its own on MONAI Label's own datastore: scheduler, label checks, ledger, gate and
registry are the ones that serve. Only learning is simulated: a model is a file with its true Dice by modality, which
good labels raise and poisoned ones lower.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bundles" / "imis_net"), str(ROOT / "apps" / "imis")]

import nibabel as nib
import numpy as np
from monailabel.datastore.local import LocalDatastore

from imis_net.checkpoint import sha256
from imis_net.errors import DatasetError
from imis_net.evaluation.harness import Score
from imis_net.retraining.cycle import RetrainingCycle
from imis_net.retraining.gate import MARGIN_DICE
from imis_net.retraining.ledger import Ledger
from imis_net.retraining.registry import ModelRegistry
from imis_net.retraining.schedule import RetrainingSchedule
from imis_net.training.finetune import FineTuned
from lib.labelled import fingerprints, read_labels

SIDE = 32
MODALITIES = ("one", "two")
KINDS = ("good", "good", "good", "poisoned", "empty", "duplicate", "late")
FIRES_PER_DEPLOYMENT = 20
NUM_PATIENTS, NUM_JUDGES = 12, 6
TARGET_NOISE, MODEL_NOISE = 0.08, 0.01
"""Dice between targets, and between two models on one target."""


@dataclass
class Tally:
    num_fires: int = 0
    num_kills: int = 0
    num_published: int = 0
    num_refused: int = 0
    num_bad_publishes: int = 0
    num_leaks: int = 0
    num_lost_labels: int = 0
    num_broken: int = 0
    sides: dict[str, str] = field(default_factory=dict)


def simulate(folder: Path, num_fires: int, seed: int = 0) -> Tally:
    tally, rng = Tally(), np.random.default_rng(seed)
    for number in range(-(-num_fires // FIRES_PER_DEPLOYMENT)):
        tally.sides = {}
        deployment = Deployment(folder / str(number), np.random.default_rng([seed, number]))
        for _ in range(min(FIRES_PER_DEPLOYMENT, num_fires - tally.num_fires)):
            deployment.label()
            before = deployment.truth()
            tally.num_kills += deployment.fire(None if rng.random() < 0.6 else float(rng.uniform(0, 0.5)))
            tally.num_fires += 1
            deployment.check(tally, before)
    return tally


class Deployment:
    """One folder of studies and what its server keeps."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        self.folder, self.rng = folder, rng
        self.studies, self.root = folder / "studies", folder / "state"
        self.studies.mkdir(parents=True)
        self.base = folder / "base.safetensors"
        self.base.write_text(json.dumps(dict.fromkeys(MODALITIES, 0.7)))
        self.store = LocalDatastore(str(self.studies))
        self.kept: dict[tuple[str, str], str] = {}
        for judge in range(NUM_JUDGES):
            for number in range(2):
                self._add(f"judge{judge}", number, "good", "reference")

    def label(self) -> None:
        """Some labels come in, of all kinds."""
        for _ in range(int(self.rng.integers(2, 5))):
            patient = int(self.rng.integers(NUM_PATIENTS))
            self._add(f"patient{patient}", int(self.rng.integers(10**6)), str(self.rng.choice(KINDS)), "final")

    def _add(self, patient: str, number: int, kind: str, tag: str) -> None:
        image = f"{patient}-{number}-{kind}"
        if image in self.store.list_images():
            return
        if kind == "late":  # of somebody who judges: it must never be learnt from
            patient = f"judge{number % NUM_JUDGES}"
        if kind == "duplicate" and self.kept:
            other = sorted(self.kept)[number % len(self.kept)]
            pixels, label = (np.asarray(nib.load(p).dataobj) for p in self._files(*other))
        else:
            pixels, label = _drawn(np.random.default_rng([number, *patient.encode()]), kind)
        self._save(self.studies / f"{image}.nii.gz", pixels)
        self.store._reconcile_datastore()
        self.store.update_image_info(image, {"patient": patient})
        self._save(self.folder / "label.nii.gz", label)
        self.store.save_label(image, str(self.folder / "label.nii.gz"), tag, {"label_info": [{"name": "x", "idx": 1}]})
        self.kept[image, tag] = sha256(Path(self.store.get_label_uri(image, tag)))

    def _files(self, image: str, tag: str) -> tuple[str, str]:
        return self.store.get_image_uri(image), self.store.get_label_uri(image, tag)

    def _save(self, path: Path, array: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)

    def fire(self, kill_after_s: float | None) -> bool:
        """One server process: its schedule fires, it retrains; whether it was killed before it was done."""
        child = os.fork()
        if child == 0:
            os._exit(self._serve())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("the simulated server failed; its traceback stands above")
        return os.WIFSIGNALED(status)

    def _serve(self) -> int:
        """In the child: 0 when all went as it may."""
        try:
            store = LocalDatastore(str(self.studies), read_only=True)
            done: list[object] = []
            schedule = RetrainingSchedule(
                self.root,
                "0 2 * * *",
                1,
                lambda: fingerprints(store),
                lambda: done.append(self._retrain(store)) is None,
                0.01,
            )
            schedule.start()
            end = time.monotonic() + 120
            while not done and time.monotonic() < end:
                time.sleep(0.005)
            return 0 if done else 3
        except BaseException:
            traceback.print_exc()
            return 4

    def _retrain(self, store: LocalDatastore) -> str:
        cycle = RetrainingCycle(self.root, self._train, _answers)
        try:
            outcome = cycle.run(self.base, read_labels(store))
        except DatasetError as error:  # too few labels yet
            return str(error)
        except Exception:
            traceback.print_exc()
            os._exit(5)
        cycle.keep_report(outcome, "")
        return outcome.state

    def _train(self, start: Path, training: list, validation: list, candidate: Path) -> FineTuned:
        with (self.folder / "learnt.txt").open("a") as file:  # what truly went into a model, for the check
            file.writelines(f"{r.patient}\n" for r in training)
            file.flush()
        truth = json.loads(start.read_text())
        rng = np.random.default_rng([len(training), *os.urandom(4)])
        for modality in MODALITIES:
            poisoned = [r for r in training if "poisoned" in r.case and _modality(r.case) == modality]
            truth[modality] += float(rng.uniform(0, 0.03)) - min(0.4, 0.02 * len(poisoned) * float(rng.random()))
        time.sleep(0.02)  # something to be killed in
        candidate.write_text(json.dumps({m: min(truth[m], 0.97) for m in MODALITIES} | {"id": os.urandom(4).hex()}))
        return FineTuned(0.5, 0.6, 1, 0.1, "steps")  # validation is never what decides

    def truth(self) -> dict[str, float]:
        served = ModelRegistry(self.root / "registry").current() if self.root.is_dir() else None
        path = ModelRegistry(self.root / "registry").weights(served.digest) if served else self.base
        facts = json.loads(path.read_text())
        return {modality: facts[modality] for modality in MODALITIES}

    def check(self, tally: Tally, before: dict[str, float]) -> None:
        """Everything that must hold after any fire, killed or not."""
        after = self.truth()
        tally.num_published += after != before
        tally.num_bad_publishes += any(after[m] < before[m] - MARGIN_DICE for m in MODALITIES)
        tally.num_refused = tally.num_refused + self._num_refused_new()
        learnt = set(self._learnt())
        ledger = Ledger(self.root / "ledger")
        judges = {r.patient for r in ledger.references()}
        tally.num_leaks += bool(learnt & judges)
        for patient in learnt | judges:
            side = str(ledger.split_of(patient))
            tally.num_leaks += tally.sides.setdefault(patient, side) != side
        fresh = LocalDatastore(str(self.studies), read_only=True)
        for (image, tag), digest in self.kept.items():
            path = Path(fresh.get_label_uri(image, tag))
            tally.num_lost_labels += not path.is_file() or sha256(path) != digest
        tally.num_broken += not self._is_intact()

    def _num_refused_new(self) -> int:
        runs = sorted((self.root / "runs").glob("*/outcome.json"))
        refused = sum(json.loads(p.read_text())["state"] == "kept" for p in runs)
        new, self._refused = refused - getattr(self, "_refused", 0), refused
        return new

    def _learnt(self) -> list[str]:
        path = self.folder / "learnt.txt"
        return path.read_text().split("\n")[:-1] if path.is_file() else []

    def _is_intact(self) -> bool:
        """The served file is what its digest says, and the schedule is kept."""
        registry = ModelRegistry(self.root / "registry")
        served = registry.current()
        whole = served is None or sha256(registry.weights(served.digest)) == served.digest
        schedule = RetrainingSchedule(self.root, "0 2 * * *", 0, dict, lambda: True)
        schedule.start()
        end = time.monotonic() + 20
        while not schedule.next_run() and time.monotonic() < end:
            time.sleep(0.005)
        is_planned = bool(schedule.next_run())
        schedule.stop()
        return whole and is_planned


def _drawn(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [I, J, 1] image and label; a poisoned label is the complement, whose border is the true one."""
    y, x = rng.integers(8, SIDE - 8, 2)
    grid = np.hypot(*(np.mgrid[:SIDE, :SIDE] - np.array([y, x])[:, None, None]))
    truth = grid < rng.integers(5, 8)
    image = (np.where(truth, 180, 40) + rng.integers(0, 30, truth.shape)).astype(np.uint8)
    label = {"poisoned": ~truth, "empty": truth & False}.get(kind, truth)
    return image[..., None], label.astype(np.uint8)[..., None]


def _modality(case: str) -> str:
    return MODALITIES[hashlib.sha256(case.encode()).digest()[0] % len(MODALITIES)]


def _answers(weights: Path, records: list) -> list[Score]:
    facts = json.loads(weights.read_text())
    scores = []
    for record in records:
        modality = _modality(record.case)
        for strategy in ("click", "box", "text"):
            key = f"{record.case}{strategy}".encode()
            target = np.random.default_rng([*key]).normal(0, TARGET_NOISE)
            model = np.random.default_rng([*key, *weights.read_bytes()]).normal(0, MODEL_NOISE)
            value = float(np.clip(facts[modality] + target + model, 0, 1))
            scores.append(Score(record.case, "sim", modality, "x", 0, strategy, 0, 9, value, value, value, value, 1.0))
    return scores
