"""Labels that would teach the wrong thing, found before training: empty, whole-image, duplicate, contradictory, moved.

A good label's border lies on edges of its image. The border is therefore compared with the image's edges as it stands,
shifted (all shifts at once, by cross-correlation) and flipped: where another place fits clearly better, the label was
moved. A flip is also known by where targets of the same names lie in other patients: then a border that fits a little
better is enough, and one that fits better where the target is in nobody is chance. What is found is quarantined with
its reason; nothing is deleted.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy import fft, ndimage

from imis_net.errors import DatasetError
from imis_net.retraining.label_places import Centre, Flip, Places, centres

MAX_COVERAGE = 0.9
"""Of the image by one target; the largest organs of a slice stay below two thirds."""
MIN_SHIFT_PX = 6
"""Smaller shifts are within how people draw."""
MAX_SHIFT_SHARE = 0.15
"""Of the shorter side; farther away the border of something else is found."""
FLIP_GAIN, FLIP_CHANCE = 0.25, 6.0
"""By what share another place must fit better: a least one, and what chance gives to a border of n pixels, which falls
with the root of n as the error of any mean does."""
SHIFT_GAIN, SHIFT_CHANCE_PX = 0.3, 500.0
"""The same for the best of thousands of shifts. That chance falls with n itself, not with its root, is what was seen on
half of the patients: as many true labels are questioned there, and more moved ones of whole slices found."""
MIN_BORDER_PX = 300
"""A shorter border fits too many places by chance."""
PLACE_GAIN = 3.0
"""Logarithm of how much likelier the flipped place must be by what other patients show: the least with which no more
true labels are questioned than by borders alone, on half of the patients (``benchmarks/label_checks.py``)."""
FLIPS: Mapping[str, Flip] = {"left to right": (-1, 1), "upside down": (1, -1), "by a half turn": (-1, -1)}
"""Signs of x and y."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One slice with its label, as it goes into training.

    Attributes:
        case: which one, for people.
        patient: who; never shown.
        image: uint8 [H, W, 3].
        label: integers [H, W], 0 background.
        names: of the label's values, as far as they are known.
    """

    case: str
    patient: str
    image: np.ndarray
    label: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def centres(self) -> list[Centre]:
        return centres(self.label, self.names, self.patient)


@dataclass(frozen=True)
class Finding:
    """Why a label is quarantined: ``rule`` is one word, ``reason`` a sentence with the number that decided."""

    case: str
    rule: str
    reason: str


def check_labels(items: Sequence[LabelledImage]) -> tuple[list[LabelledImage], list[Finding]]:
    """The labels that are fit for training, in their order, and why the others are not."""
    places = Places(centre for item in items for centre in item.centres)
    findings = {id(item): finding for item in items if (finding := check_label(item, places)) is not None}
    findings.update(_contradictions([item for item in items if id(item) not in findings]))
    return [item for item in items if id(item) not in findings], [findings[id(i)] for i in items if id(i) in findings]


def check_label(item: LabelledImage, places: Places | None = None) -> Finding | None:
    """What is wrong with one label, or None; ``places``: what the others say."""
    moved = partial(_moved, places=places or Places(()))
    for rule, check in (("size", _size), ("empty", _empty), ("whole-image", _whole_image), ("moved", moved)):
        reason = check(item)
        if reason is not None:
            return Finding(item.case, rule, reason)
    return None


def _size(item: LabelledImage) -> str | None:
    if item.label.shape == item.image.shape[:2]:
        return None
    return f"label of {list(item.label.shape)} pixels on an image of {list(item.image.shape[:2])}"


def _empty(item: LabelledImage) -> str | None:
    return None if item.label.any() else "no pixel is labelled"


def _whole_image(item: LabelledImage) -> str | None:
    counts = np.bincount(item.label.astype(np.int64).ravel())
    counts[0] = 0
    share = counts.max() / item.label.size
    return None if share <= MAX_COVERAGE else f"one target covers {share:.0%} of the image, at most {MAX_COVERAGE:.0%}"


def _moved(item: LabelledImage, places: Places) -> str | None:
    border, targets = _border(item.label), item.centres
    num_pixels = int(border.sum())
    is_long = num_pixels >= MIN_BORDER_PX
    if not num_pixels or not (is_long or targets):
        return None
    edges = _edges(item.image)
    here = max(fit(border, edges), 0.1)  # a label on flat ground fits nowhere
    for name, (x, y) in FLIPS.items():
        there = fit(border[::y, ::x], edges)
        likelier = places.gain(targets, (x, y))
        is_clear = is_long and there > here * (1 + max(FLIP_GAIN, FLIP_CHANCE / num_pixels**0.5))
        if likelier is None and is_clear:
            return f"fits {there / here:.1f} times better when flipped {name}"
        if likelier is not None and ((is_clear and likelier > 0) or (there > here and likelier > PLACE_GAIN)):
            return f"fits {there / here:.1f} times better, and lies where other patients have it, when flipped {name}"
    if not is_long:
        return None
    dy, dx, there = _best_shift(border, edges)
    if np.hypot(dy, dx) >= MIN_SHIFT_PX and there > here * (1 + max(SHIFT_GAIN, SHIFT_CHANCE_PX / num_pixels)):
        return f"fits {there / here:.1f} times better when shifted by {dx} columns and {dy} rows"
    return None


def fit(border: np.ndarray, edges: np.ndarray) -> float:
    """Mean edge strength on the border: bool [H, W], float [H, W]; 1 is what a random place has.

    Raises:
        DatasetError: there is no border.
    """
    if not border.any():
        raise DatasetError("a label without border cannot be compared with edges")
    return float(edges[border].mean())


def _border(label: np.ndarray) -> np.ndarray:
    inner = np.zeros(label.shape, bool)
    inner[:-1] |= label[:-1] != label[1:]
    inner[:, :-1] |= label[:, :-1] != label[:, 1:]
    return inner


def _edges(image: np.ndarray) -> np.ndarray:
    """Edge strength of the image, float32 [H, W], mean 1 over what is not flat."""
    grey = ndimage.gaussian_filter(image.astype(np.float32).mean(-1), 1.0)
    strength = np.sqrt(np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)))  # a strong edge is not ten weak ones
    return ndimage.maximum_filter(strength, 3) / (strength.mean() + 1e-6)


def _best_shift(border: np.ndarray, edges: np.ndarray) -> tuple[int, int, float]:
    """Rows and columns by which the border fits best, and how well; all shifts by one correlation."""
    reach = round(MAX_SHIFT_SHARE * min(border.shape))
    shape = [n + 2 * reach for n in border.shape]
    correlation = fft.irfft2(np.conj(fft.rfft2(border, shape)) * fft.rfft2(edges, shape), shape)
    near = np.roll(correlation, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    row, column = np.unravel_index(near.argmax(), near.shape)
    return int(row) - reach, int(column) - reach, float(near.max() / border.sum())


def _contradictions(items: Sequence[LabelledImage]) -> dict[int, Finding]:
    """The same picture labelled twice: once is enough if they agree, neither can be believed if they do not."""
    same: dict[bytes, list[LabelledImage]] = defaultdict(list)
    for item in items:
        same[hashlib.sha256(item.image.tobytes()).digest()].append(item)
    findings = {}
    for first, *others in same.values():
        agree = [o for o in others if np.array_equal(o.label, first.label)]
        for other in agree:
            findings[id(other)] = Finding(other.case, "duplicate", f"the same image and label as {first.case}")
        if len(agree) < len(others):
            for item in (first, *(o for o in others if id(o) not in findings)):
                reason = f"{1 + len(others)} labels of the same image differ"
                findings[id(item)] = Finding(item.case, "contradictory", reason)
    return findings
