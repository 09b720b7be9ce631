"""Which image to label next: Dice by number of labels for each strategy, the default's beside a random choice.

A department has stacks of five kinds that the model has never seen, in one unordered pile, and a poor model: a good one
hardly changes in so few steps, whatever it is shown. In each round a strategy picks images one by one, they get their
true labels, and the model is tuned further on all labels so far, as a nightly retraining does. Each seed is another
department: half of the pile, the same for every strategy.

python benchmarks/strategies.py --data DIR [--rounds 3] [--labels 4] [--seeds 5] [--steps 60] [--minutes 25]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "bundles/imis_net", "tests/e2e")]

import matplotlib

matplotlib.use("Agg")
import numpy as np
from claims import RESULTS, Claim, report
from matplotlib import pyplot as plt
from poor_model import poor_weights

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.evaluation.bootstrap import crossed_mean_interval
from imis_net.evaluation.harness import record_dices
from imis_net.retraining.scoring import score_image
from imis_net.retraining.selection import NEED_SCORES, STRATEGIES, ImageScore, choose
from imis_net.retraining.tuner import Tuner
from imis_net.training.dataset import Record, read_index
from imis_net.training.finetune import FineTuning

MODEL, SIDE, LEARNING_RATE = "imis_net_compact", 256, 1e-3
"""Half the served side and a quick rate: it is the order of the curves that counts, not their height."""
STACKS = ("ISBI", "nilearn", "lung2", "brain1", "nuclei3d")
"""Part of a stack's name: each of one subject that training left out."""
DEFAULT, *OTHERS = STRATEGIES
"""The default is what a viewer shows first: surely better than chance, and no other surely better than it."""
CHANCE = "random"
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
        self.start = poor_weights(folder / "start.safetensors", SIDE)
        self._scores: dict[tuple[Path, str], ImageScore] = {}

    def tuned(
        self, start: Path, labelled: Sequence[Record], validation: Sequence[Record], name: str, seed: int
    ) -> Path:
        settings = FineTuning(
            max_steps=self.num_steps,
            max_seconds=1e9,
            learning_rate=LEARNING_RATE,
            validate_every=max(1, self.num_steps // 2),
            seed=seed,
        )
        replace(self.tuner, settings=settings).train(start, labelled, validation, self.folder / name)
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
    parser.add_argument("--labels", type=int, default=4, help="in each round")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="of each tuning")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which no further seed is begun")
    args = parser.parse_args()
    department = read_department(args.data)
    with tempfile.TemporaryDirectory() as folder:
        model = Model(Path(folder), args.steps)
        curves = simulated(model, department, args.rounds, args.labels, args.seeds, 60 * args.minutes)
        draw(curves, args.labels)
        return report("strategies", compared(curves, args.labels))


def read_department(data: Path) -> Department:
    """Parts of one subject's stack stand for patients, since there is no more than one of each kind."""
    records = read_index(data, ["train", "val", "test"])
    pool, validation, held_out = {}, [], []
    for stack in STACKS:
        slices = [r for r in records if stack in f"{r.source} {r.patient}"]
        slices = [replace(r, patient=f"{stack} {n}") for n, r in enumerate(slices) if any(True for _ in r.masks())]
        last = slices[-len(slices) // 4 :]
        pool |= {r.patient: r for r in slices[: len(slices) * 6 // 10]}
        between = slices[len(slices) * 6 // 10 + 1 : -len(slices) // 4]
        validation += between[:: max(1, len(between) // NUM_VALIDATION)][:NUM_VALIDATION]
        held_out += last[:: max(1, len(last) // NUM_HELD_OUT)][:NUM_HELD_OUT]
    return Department(pool, validation, held_out)


def simulated(
    model: Model, department: Department, rounds: int, labels: int, num_seeds: int, max_seconds: float
) -> dict[str, np.ndarray]:
    """Dice [seeds, rounds + 1, held out] of each strategy. All of them for one seed before the next."""
    began = time.monotonic()
    curves: dict[str, list[np.ndarray]] = {strategy: [] for strategy in STRATEGIES}
    for seed in range(num_seeds):
        if seed and time.monotonic() - began > max_seconds:
            break
        for strategy in STRATEGIES:
            curves[strategy].append(curve(model, half_of(department, seed), strategy, rounds, labels, seed))
            print(f"  seed {seed} {strategy}: {_shown(curves[strategy][-1].mean(-1))}", flush=True)
    return {strategy: np.array(of_seeds) for strategy, of_seeds in curves.items()}


def half_of(department: Department, seed: int) -> Department:
    names = sorted(department.pool)
    chosen = np.random.default_rng([seed, 1]).permutation(len(names))[: len(names) // 2]
    return replace(department, pool={names[i]: department.pool[names[i]] for i in sorted(chosen)})


def compared(curves: Mapping[str, np.ndarray], labels: int) -> Iterator[Claim]:
    num_seeds, num_points, num_held_out = curves[DEFAULT].shape
    of = f"{labels} labels in each of {num_points - 1} rounds, {num_seeds} seeds x {num_held_out} slices"
    for strategy, other in [(DEFAULT, CHANCE), *((strategy, DEFAULT) for strategy in OTHERS)]:
        gains = (curves[strategy] - curves[other])[:, 1:].mean(1)
        low, high = crossed_mean_interval(gains, np.random.default_rng(0), 2000)
        dices = f"Dice {_shown(curves[strategy].mean((0, 2)))}, {other}'s {_shown(curves[other].mean((0, 2)))}"
        beside = f"mean {gains.mean():+.3f}, up to {high:+.3f}; {dices}; {of}"
        name = f"{strategy}: mean Dice over the curve beyond {other}'s, lower end of 95 %"
        yield Claim(name, low, 0.0, at_least=strategy == DEFAULT, beside=beside)


def draw(curves: Mapping[str, np.ndarray], labels: int) -> None:
    """``results/strategies.png``: Dice by number of labels."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for strategy, of_seeds in curves.items():
        num_labels = labels * np.arange(of_seeds.shape[1])
        axes.plot(num_labels, of_seeds.mean((0, 2)), marker="o", label=strategy)
    axes.set(xlabel="labels", ylabel="Dice on held-out slices")
    axes.legend()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "strategies.png", dpi=100)
    plt.close(figure)


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
        candidate = f"{strategy}-{seed}-{number}.safetensors"
        weights = model.tuned(weights, [*labelled.values()], department.validation, candidate, seed * rounds + number)
        dices.append(model.dices(weights, department.held_out))
    return np.array(dices)


def _shown(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{v:.3f}" for v in values)


if __name__ == "__main__":
    sys.exit(main())
