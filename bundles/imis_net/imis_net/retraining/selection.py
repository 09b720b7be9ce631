"""Which image a person should label next: pure functions of what scoring in the background found.

Source: uncertainty by predicted quality and by disagreement (query by committee, Seung 1992); diversity by farthest
points (core-set, arXiv 1708.00489).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from imis_net.errors import ImisError

STRATEGIES = ("hybrid", "random", "first", "uncertain", "diverse")
"""The first is what viewers offer first: benchmarks/strategies.py found it surely better than a random choice."""
NEED_SCORES = ("uncertain", "diverse", "hybrid")


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What scoring found in one image.

    Attributes:
        uncertainty: 0 (sure) to 1; the mean of 1 - predicted IoU and of the disagreement of prompts.
        descriptor: float [C], the pooled image embedding, of length 1.
    """

    uncertainty: float
    descriptor: np.ndarray


def choose(
    strategy: str,
    candidates: Mapping[str, ImageScore | None],
    labelled: Mapping[str, ImageScore | None],
    rng: np.random.Generator,
) -> str:
    """The id to label next among ``candidates``, where ``labelled`` has been; an image not scored yet is None.

    Strategies that need scores fall back to a random choice while there are none.

    Raises:
        ImisError: no candidate, or an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise ImisError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if not candidates:
        raise ImisError("no image is left to label")
    if strategy == "first":
        return min(candidates)
    scored = {k: s for k, s in sorted(candidates.items()) if s is not None}
    if strategy == "random" or not scored:
        return sorted(candidates)[rng.integers(len(candidates))]
    seen = [s for s in labelled.values() if s is not None]
    return max(scored, key=lambda k: _value(strategy, scored[k], seen))


def _value(strategy: str, score: ImageScore, seen: list[ImageScore]) -> float:
    if strategy == "uncertain":
        return score.uncertainty
    novelty = min((_distance(score.descriptor, s.descriptor) for s in seen), default=1.0)
    return novelty if strategy == "diverse" else novelty * score.uncertainty


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """0 for the same direction, 1 for orthogonal ones."""
    return float(1 - a @ b)
