"""What a training tells: a progress bar, steps.csv and log.jsonl, TensorBoard, and MLflow in a file of its own.

After a kill the files are cut back to the checkpoint, so that every step stands in them once.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from imis_net.files import write_atomically
from imis_net.mlflow_run import MlflowRun
from imis_net.training.checkpointing import Place

log = logging.getLogger(__name__)

SHOWN_STEPS = 50
"""The bar and the curves show means over so many steps."""
EXPERIMENT = "imis_net"


class TrainingLog:
    """Of one process, the first; the others are silent.

    Each step's loss and its mean Dice after each round go to ``steps.csv``; each validation to ``log.jsonl``.
    """

    def __init__(self, out_dir: Path, place: Place, tensorboard: bool = True, mlflow: bool = True) -> None:
        """Take up the files in ``out_dir`` from ``place``, whose ``run_id`` is set to MLflow's run."""
        self.out_dir = out_dir
        _keep_until(out_dir / "steps.csv", place, lambda line: next(csv.reader([line]))[:2])
        _keep_until(out_dir / "log.jsonl", place, lambda line: [json.loads(line)[k] for k in ("stage", "step")])
        self._steps = (out_dir / "steps.csv").open("a", buffering=1)
        self._writer = _tensorboard_writer(out_dir) if tensorboard else None
        self._tracker = MlflowRun(out_dir, EXPERIMENT, place.run_id) if mlflow else None
        if self._tracker is not None:
            place.run_id = self._tracker.run_id
        self._recent: deque[tuple[float, Sequence[float]]] = deque(maxlen=SHOWN_STEPS)
        self._since_validation: list[tuple[float, float]] = []
        self._bar: tqdm | None = None

    def begin_stage(self, index: int, num_steps: int, step: int) -> None:
        """tqdm knows the time left."""
        self._recent.clear()  # of stages whose rounds may be another number
        self._bar = tqdm(total=num_steps, initial=step, desc=f"stage {index}", mininterval=1, dynamic_ncols=True)

    def step(self, stage: int, step: int, total: int, loss: float, dices: Sequence[float], rate: float) -> None:
        """One step, the ``total``-th of all stages; its loss, its mean Dice after each round."""
        self._steps.write(",".join([str(stage), str(step), repr(loss), *(f"{d:.5f}" for d in dices)]) + "\n")
        self._recent.append((loss, dices))
        if dices:
            self._since_validation.append((loss, dices[-1]))
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix_str(self._shown(), refresh=False)
        if step % 25 == 0:
            self._curves(total, {"loss": self._mean_loss(), "learning_rate": rate, **self._by_round()})

    def validation(self, stage: int, step: int, total: int, scores: dict[str, float]) -> None:
        """One line of log.jsonl; JSON even where nothing was measured."""
        entry: dict[str, Any] = {"stage": stage, "step": step, "time": time.strftime("%H:%M:%S")}
        if self._since_validation:
            loss, dice = np.mean(self._since_validation, axis=0)
            entry |= {"loss": float(loss), "train_dice": float(dice)}
        entry |= {f"val_{k}": round(v, 4) for k, v in scores.items()}
        self._since_validation.clear()
        with (self.out_dir / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        log.info("%s", entry)
        self._curves(total, {f"validation/{k}": v for k, v in scores.items()})

    def end_stage(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def close(self, finished: bool) -> None:
        """Flush everything; ``finished`` tells a complete run from an interrupted one."""
        self.end_stage()
        self._steps.close()
        if self._writer is not None:
            self._writer.close()
        if self._tracker is not None:
            self._tracker.close(finished)

    def _curves(self, total: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, total)
        if self._tracker is not None:
            self._tracker.log(total, values)

    def _mean_loss(self) -> float:
        return float(np.mean([loss for loss, _ in self._recent]))

    def _by_round(self) -> dict[str, float]:
        rounds = [d for _, d in self._recent if len(d)]
        return {f"dice/round_{k}": float(v) for k, v in enumerate(np.mean(rounds, axis=0))} if rounds else {}

    def _shown(self) -> str:
        dices = " ".join(f"{d:.2f}" for d in self._by_round().values())
        return f"loss {self._mean_loss():.3f}, dice by round {dices}"


def _tensorboard_writer(out_dir: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out_dir / "tensorboard"))


def _keep_until(path: Path, place: Place, stage_and_step: Callable[[str], Sequence[Any]]) -> None:
    """Drop lines after ``place``, and a last one that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            at = [int(v) for v in stage_and_step(line)]
        except (ValueError, KeyError, IndexError, StopIteration):
            continue
        if line.endswith("\n") and at <= [place.stage, place.step]:
            kept.append(line)
    write_atomically(path, "".join(kept).encode())
