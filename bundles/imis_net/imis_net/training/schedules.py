"""The learning rate over a stage, as a share of its peak: (steps taken, share of the stage that is over) -> [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int, float], float]


def constant(step: int, done: float) -> float:
    """The paper's."""
    return 1.0


@dataclass(frozen=True)
class Cosine:
    """A linear warm-up of some steps, then a cosine to 2 %."""

    num_warm_up_steps: int = 100

    def __call__(self, step: int, done: float) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return min(1.0, step / self.num_warm_up_steps) * (0.02 + 0.98 * cosine)


@dataclass(frozen=True)
class WarmUpByEpoch:
    """IMIS-Bench's: rises from ``start`` to 1 at the ends of the first ``num_warm_up_epochs``, then constant."""

    num_epochs: int
    num_warm_up_epochs: int = 5
    start: float = 0.1

    def __call__(self, step: int, done: float) -> float:
        epoch = math.ceil(done * self.num_epochs) - 1
        return self.start + (1 - self.start) * min(1.0, max(0, epoch) / self.num_warm_up_epochs)
