"""Which image to label next: Dice by number of labels for each strategy, beside a random choice.

A department has stacks of four kinds that the model has never seen, in one unordered pile. In each round a strategy
picks images one by one, they get their true labels, and the model is tuned on all labels so far, as a retraining does.

python benchmarks/strategies.py --data DIR [--rounds 3] [--labels 6] [--seeds 3] [--steps 120]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "bundles/imis_net")]

import numpy as np
from claims import Claim, report

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.evaluation.bootstrap import crossed_mean_interval
from imis_net.evaluation.harness import record_dices
from imis_net.retraining.scoring import score_image
from imis_net.retraining.selection import NEED_SCORES, STRATEGIES, ImageScore, choose
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import weights_path
from imis_net.training.dataset import Record, read_index
from imis_net.training.finetune import FineTuning

MODEL, SIDE, LEARNING_RATE = "imis_net_compact", 256, 1e-3
"""Half the served side and a quick rate: it is the order of the curves that counts, not their height."""
STACKS = {"ISBI": 1, "nilearn": 4, "lung2": 1, "nuclei3d": 1}
"""Part of a stack's name, and the step between its slices: each of one subject that training left out."""
DEFAULT, *OTHERS = STRATEGIES
"""The default is what a viewer shows first. It is wrong only if another is surely better."""
NUM_HELD_OUT = 4
"""Slices of each stack that score; taken from its last quarter, away from those that can be labelled."""
NUM_VALIDATION = 3
"""Slices of each stack that choose a tuning's weights, from between the two: with one alone, chance refuses most."""


@dataclass(frozen=True)
class Department:
    pool: Mapping[str, Record]
    validation: Sequence[Record]
    held_out: Sequence[Record]


class Model:
    """Tuned, asked and scored on trunk features that are made once."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self.folder, self.num_steps = folder, num_steps
        self.tuner = Tuner(MODEL, EmbeddingDisk(folder / "trunk", 10**10), architecture={"image_size": SIDE})
        self.start = weights_path(MODEL)
        self._scores: dict[tuple[Path, str], ImageScore] = {}

    def tuned(self, labelled: Sequence[Record], validation: Sequence[Record], name: str, seed: int) -> Path:
        settings = FineTuning(
            max_steps=self.num_steps,
            max_seconds=1e9,
            learning_rate=LEARNING_RATE,
            validate_every=max(1, self.num_steps // 2),
            seed=seed,
        )
        replace(self.tuner, settings=settings).train(self.start, labelled, validation, self.folder / name)
        return self.folder / name

    def dices(self, weights: Path, records: Sequence[Record]) -> np.ndarray:
        return record_dices(self.tuner.segmenter(weights), records)

    def scores(self, weights: Path, pool: Mapping[str, Record]) -> dict[str, ImageScore]:
        segmenter = self.tuner.segmenter(weights)
        for name, record in pool.items():
            if (weights, name) not in self._scores:
                embedding = segmenter.encode_image(record.image)
                self._scores[weights, name] = score_image(segmenter, embedding, segmenter.known_texts or ())
        return {name: self._scores[weights, name] for name in pool}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "dev")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=6, help="in each round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="of each tuning")
    args = parser.parse_args()
    department = read_department(args.data)
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder), args.steps)
        return report("strategies", compared(model, department, args.rounds, args.labels, range(args.seeds)))


def read_department(data: Path) -> Department:
    """Parts of one subject's stack stand for patients, since there is no more than one of each kind."""
    records = read_index(data, ["train", "val", "test"])
    pool, validation, held_out = {}, [], []
    for stack, step in STACKS.items():
        slices = [r for r in records if stack in f"{r.source} {r.patient}"][::step]
        slices = [replace(r, patient=f"{stack} {n}") for n, r in enumerate(slices) if any(True for _ in r.masks())]
        last = slices[-len(slices) // 4 :]
        pool |= {r.patient: r for r in slices[: len(slices) * 6 // 10]}
        between = slices[len(slices) * 6 // 10 + 1 : -len(slices) // 4]
        validation += between[:: max(1, len(between) // NUM_VALIDATION)][:NUM_VALIDATION]
        held_out += last[:: max(1, len(last) // NUM_HELD_OUT)][:NUM_HELD_OUT]
    return Department(pool, validation, held_out)


def compared(model: Model, department: Department, rounds: int, labels: int, seeds: range) -> Iterator[Claim]:
    curves = {s: np.empty((len(seeds), rounds + 1, len(department.held_out))) for s in STRATEGIES}
    for n, seed in enumerate(seeds):  # all strategies of a seed before the next: what is done by then can be compared
        for strategy in STRATEGIES:
            curves[strategy][n] = curve(model, department, strategy, rounds, labels, seed)
            print(f"  seed {seed} {strategy}: {_shown(curves[strategy][n].mean(-1))}", flush=True)
    of = f"{labels} labels in each of {rounds} rounds, {len(seeds)} seeds x {len(department.held_out)} slices"
    print(f"  {DEFAULT}, the default: Dice {_shown(curves[DEFAULT].mean((0, 2)))}", flush=True)
    for strategy in OTHERS:
        gains = (curves[strategy] - curves[DEFAULT])[:, 1:].mean(1)
        low, high = crossed_mean_interval(gains, np.random.default_rng(0), 2000)
        beside = f"mean {gains.mean():+.3f}, up to {high:+.3f}; Dice {_shown(curves[strategy].mean((0, 2)))}; {of}"
        name = f"{strategy}: mean Dice over the curve beyond {DEFAULT}'s, lower end of 95 %"
        yield Claim(name, low, 0.0, at_least=False, beside=beside)


def curve(model: Model, department: Department, strategy: str, rounds: int, labels: int, seed: int) -> np.ndarray:
    """Dice [rounds + 1, held out] before any label and after each round."""
    rng, weights, labelled = np.random.default_rng(seed), model.start, dict[str, Record]()
    dices = [model.dices(weights, department.held_out)]
    for number in range(rounds):
        scores: Mapping[str, ImageScore] = {}
        if strategy in NEED_SCORES:
            scores = model.scores(weights, department.pool)
        for _ in range(labels):
            left = {name: scores.get(name) for name in department.pool if name not in labelled}
            name = choose(strategy, left, {name: scores.get(name) for name in labelled}, rng)
            labelled[name] = department.pool[name]
        name = f"{strategy}-{seed}-{number}.safetensors"
        weights = model.tuned([*labelled.values()], department.validation, name, seed)
        dices.append(model.dices(weights, department.held_out))
    return np.array(dices)


def _shown(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{v:.3f}" for v in values)


if __name__ == "__main__":
    sys.exit(main())
