"""Where targets of a name lie, learnt from the labels of other patients: the liver is on one side in all of them.

A flipped label lies where the same name lies in nobody else. Positions are medians over the labels, and their spread is
one too, so that some bad labels among them change little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from imis_net.training.sampler import canonical_name

MIN_NUM_PATIENTS = 8
"""Other patients with the name; with fewer, nothing is known of it."""
MIN_SPREAD = 0.03
"""Of a side of the image: how exactly people lie in a scanner at best."""
MAX_SQUARED_DISTANCE = 25.0
"""One target that lies far from everything says no more than this."""

Flip = tuple[int, int]
"""Signs of x and y."""


@dataclass(frozen=True, eq=False)
class Centre:
    """The middle of one target: x and y from the image's middle, in its sides, float [2]."""

    name: str
    patient: str
    xy: np.ndarray


def centres(label: np.ndarray, names: Mapping[int, str], patient: str) -> list[Centre]:
    """Of each named target of a label map [H, W]."""
    named = {value: canonical_name(names[value]) for value in np.unique(label).tolist() if value and names.get(value)}
    middles = ndimage.center_of_mass(label > 0, label, list(named)) if named else []
    size = np.array(label.shape[::-1])
    return [
        Centre(name, patient, (np.array([x, y]) + 0.5) / size - 0.5)
        for name, (y, x) in zip(named.values(), middles, strict=True)
    ]


class Places:
    """What the labels of a deployment say together."""

    def __init__(self, known: Iterable[Centre]) -> None:
        self._known: dict[str, list[Centre]] = defaultdict(list)
        for centre in known:
            self._known[centre.name].append(centre)
        self._usual: dict[tuple[str, str], tuple[np.ndarray, np.ndarray] | None] = {}

    def gain(self, targets: Iterable[Centre], flip: Flip) -> float | None:
        """How much likelier one label's targets are where a flip puts them, as the logarithm of a ratio of likelihoods.

        None where too few other patients have any of the names.
        """
        gains = []
        for target in targets:
            usual = self._usual_place(target.name, target.patient)
            if usual is not None:
                here, there = (_squared_distance(xy, *usual) for xy in (target.xy, target.xy * np.array(flip)))
                gains.append(0.5 * (here - there))
        return sum(gains) if gains else None

    def _usual_place(self, name: str, patient: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Middle and spread [2] of a name in everybody but ``patient``."""
        key = name, patient
        if key not in self._usual:
            others = [c for c in self._known[name] if c.patient != patient]
            self._usual[key] = None
            if len({c.patient for c in others}) >= MIN_NUM_PATIENTS:
                positions = np.array([c.xy for c in others])
                middle = np.median(positions, axis=0)
                spread = 1.4826 * np.median(np.abs(positions - middle), axis=0)  # a normal distribution's deviation
                self._usual[key] = middle, np.maximum(spread, MIN_SPREAD)
        return self._usual[key]


def _squared_distance(xy: np.ndarray, middle: np.ndarray, spread: np.ndarray) -> float:
    return min(MAX_SQUARED_DISTANCE, float((((xy - middle) / spread) ** 2).sum()))
