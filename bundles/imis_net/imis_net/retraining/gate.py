"""The promotion gate: a candidate is published only where it is shown to be no worse than production.

Both models answer the same prompts on the same frozen targets, so that differences are paired; a group passes when the
lower end of its bootstrap interval lies above the margin. Little evidence means a wide interval, and a refusal.
Source: non-inferiority testing as in clinical trials (CONSORT extension, doi 10.1001/jama.2012.87802).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imis_net.errors import DatasetError
from imis_net.evaluation.bootstrap import mean_interval
from imis_net.evaluation.harness import Score, evaluate
from imis_net.prompts import Prompt
from imis_net.segmenter import Segmenter
from imis_net.training.dataset import Record

MARGIN_DICE = 0.01
NUM_RESAMPLES = 2000
GATE_STRATEGIES = (("click", 3), ("box", 3), ("text", 3))
"""First prompts, each followed by corrective rounds."""

NUM_WORST = 12
"""Targets that the report shows."""


TargetKey = tuple[str, int]
"""A reference target: its case, and which of the case's targets it is."""


@dataclass(frozen=True)
class GroupVerdict:
    """One group's paired difference, candidate minus production, in Dice.

    Attributes:
        group: "all", or "modality:CT", "label:liver", "strategy:box".
        num_targets: how many targets the interval rests on.
        production, candidate: mean Dice.
        low, high: 95 % bootstrap interval of the mean difference.
    """

    group: str
    num_targets: int
    production: float
    candidate: float
    low: float
    high: float

    @property
    def passes(self) -> bool:
        return self.low >= -MARGIN_DICE


@dataclass(frozen=True)
class TargetVerdict:
    """One reference target, the ``target``-th of its case: mean Dice over all prompts, before and after."""

    case: str
    target: int
    label: str
    production: float
    candidate: float


@dataclass(frozen=True)
class Verdict:
    """The gate's answer; ``reason`` is one sentence for people, ``worst`` what the candidate answers worst."""

    passes: bool
    reason: str
    groups: tuple[GroupVerdict, ...]
    worst: tuple[TargetVerdict, ...] = ()


def answers(segmenter: Segmenter, records: Sequence[Record], seed: int = 0) -> list[Score]:
    """What a model answers on the reference targets, over click, box and text, each with three corrections."""
    return [
        score
        for name, rounds in GATE_STRATEGIES
        for score in evaluate(segmenter, records, name, rounds, seed, with_surface=False)
    ]


def box_masks(segmenter: Segmenter, records: Sequence[Record], seed: int = 0) -> dict[TargetKey, np.ndarray]:
    """The masks bool [H, W] behind ``answers`` to each target's first box: what a person can look at."""
    masks: dict[TargetKey, np.ndarray] = {}

    def watch(score: Score, image: np.ndarray, truth: np.ndarray, mask: np.ndarray, prompt: Prompt) -> None:
        masks[score.case, score.target] = mask

    deque(evaluate(segmenter, records, "box", 0, seed, watch=watch, with_surface=False), maxlen=0)
    return masks


def judge(production: Sequence[Score], candidate: Sequence[Score], seed: int = 0) -> Verdict:
    """Compare two models' answers to the same prompts.

    Raises:
        DatasetError: the two were not asked the same.
    """
    if not production:
        return Verdict(False, "there is no reference label to compare on; mark some labels as reference", ())
    before, after = _by_key(production), _by_key(candidate)
    if before.keys() != after.keys():
        odd = next(iter(before.keys() ^ after.keys()))
        raise DatasetError(f"the models answered different prompts: only one has {odd}")
    groups = tuple(
        _verdict(group, [(before[k], after[k]) for k in keys], seed) for group, keys in _groups(before).items()
    )
    targets = _worst(before, after)
    failing = [g for g in groups if not g.passes]
    if not failing:
        return Verdict(True, f"not inferior on any of {len(groups)} groups", groups, targets)
    worst = min(failing, key=lambda g: g.low)
    reason = (
        f"may be worse on {len(failing)} of {len(groups)} groups, most on {worst.group}: {worst.production:.3f} to "
        f"{worst.candidate:.3f}, difference at least {worst.low:+.3f}, allowed {-MARGIN_DICE:+.3f}"
    )
    return Verdict(False, reason, groups, targets)


Key = tuple[str, int, str, str, str]
Pair = tuple[float, float]


def _by_key(scores: Iterable[Score]) -> dict[Key, float]:
    """Mean Dice over the rounds of each target and strategy."""
    rounds: dict[Key, list[float]] = defaultdict(list)
    for s in scores:
        rounds[s.case, s.target, s.strategy, s.modality, s.label].append(s.dice)
    return {key: float(np.mean(values)) for key, values in rounds.items()}


def _groups(keys: Iterable[Key]) -> dict[str, list[Key]]:
    groups: dict[str, list[Key]] = defaultdict(list)
    for key in keys:
        _, _, strategy, modality, label = key
        for group in ("all", f"strategy:{strategy}", f"modality:{modality}", f"label:{label}"):
            groups[group].append(key)
    return groups


def _worst(before: Mapping[Key, float], after: Mapping[Key, float]) -> tuple[TargetVerdict, ...]:
    keys: dict[tuple[str, int, str], list[Key]] = defaultdict(list)
    for key in before:
        case, target, _, _, label = key
        keys[case, target, label].append(key)
    means = {of: [float(np.mean([dices[k] for k in some])) for dices in (before, after)] for of, some in keys.items()}
    chosen = sorted(means, key=lambda of: means[of][1])[:NUM_WORST]
    return tuple(TargetVerdict(*of, *means[of]) for of in chosen)


def _verdict(group: str, pairs: Sequence[Pair], seed: int) -> GroupVerdict:
    values = np.array(pairs)
    differences = values[:, 1] - values[:, 0]
    low, high = mean_interval(differences, np.random.default_rng(seed), NUM_RESAMPLES)
    before, after = values.mean(0)
    return GroupVerdict(group, len(pairs), float(before), float(after), low, high)
