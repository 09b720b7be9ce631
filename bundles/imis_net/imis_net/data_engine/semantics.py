"""Names for masks that nobody named: a guess with a calibrated confidence, or "unknown".

Two sources of evidence, one scale:

- the semantic head: its vector against the text embeddings of the names, by cosine. Only for networks whose two spaces
  are one (512 both) and whose head was trained;
- the text prompt: what the network draws when it is asked for a name, against the mask, by IoU. Needs no head, so it
  serves the compact default.

Confidence is the fraction of named masks with such a score whose guess was right, by isotonic regression. What a
calibration tells is judged on other patients than it was made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from imis_net.data_engine.regions import mask_ious
from imis_net.data_engine.settings import SemanticsSettings
from imis_net.errors import DatasetError
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import Segmenter

UNKNOWN = "unknown"
SURENESS_Z = 1.2816
"""Nine times in ten a true precision lies above the lower end of an interval so many deviations wide."""


@dataclass(frozen=True)
class Guess:
    """The best name and its raw score, a cosine or an IoU."""

    name: str
    score: float


@dataclass(frozen=True)
class Proposal:
    """``name`` is UNKNOWN below the calibrated bound; ``confidence`` is the best guess's all the same."""

    name: str
    confidence: float


def guess_by_semantic_head(vectors: np.ndarray, text_embeddings: np.ndarray, names: Sequence[str]) -> list[Guess]:
    """
    Args:
        vectors: float [N, D], ``Prediction.semantic_embedding`` of each mask.
        text_embeddings: float [C, D], one per name.

    Raises:
        DatasetError: the two are not of one space.
    """
    if vectors.shape[1] != text_embeddings.shape[1]:
        raise DatasetError(
            f"semantic vectors have {vectors.shape[1]} numbers, text embeddings {text_embeddings.shape[1]}: "
            "this network's semantic head cannot name; guess by text prompts"
        )
    cosines = _unit(vectors) @ _unit(text_embeddings).T
    return [Guess(names[i], float(row[i])) for row, i in zip(cosines, cosines.argmax(axis=1), strict=True)]


def draw_names(segmenter: Segmenter, embedding: ImageEmbedding, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What the network draws when it is asked for each name: bool [H, W] by name.

    Raises:
        PromptError: a name that the network does not know.
    """
    answers = segmenter.predict_batch(embedding, [Prompt(text=name) for name in names]) if names else []
    return {name: answer.mask for name, answer in zip(names, answers, strict=True)}


def guess_by_drawn(masks: Sequence[np.ndarray], drawn: Mapping[str, np.ndarray]) -> list[Guess]:
    """Each mask gets the name whose drawing, of ``draw_names``, shares most with it."""
    names = list(drawn)
    ious = mask_ious(masks, list(drawn.values()))
    return [Guess(names[i], float(row[i])) for row, i in zip(ious, ious.argmax(axis=1), strict=True)]


@dataclass(frozen=True)
class Named:
    """A guess at a mask whose name is known."""

    guess: Guess
    truth: str
    patient: str


class Calibration:
    """Raw score -> confidence, and the confidence from which a guess is told."""

    def __init__(self, named: Sequence[Named], settings: SemanticsSettings) -> None:
        self.bound = np.inf
        self._curve: IsotonicRegression | None = None
        if len(named) < settings.min_calibration_masks:
            return
        scores = np.array([n.guess.score for n in named])
        is_right = np.array([n.guess.name == n.truth for n in named], float)
        self._curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, is_right)
        self.bound = _least_score(scores, is_right, settings.min_precision)

    def propose(self, guess: Guess) -> Proposal:
        if self._curve is None:
            return Proposal(UNKNOWN, 0.0)
        confidence = float(self._curve.predict([guess.score])[0])
        return Proposal(guess.name if guess.score >= self.bound else UNKNOWN, confidence)


@dataclass(frozen=True)
class Precision:
    """How often a told name is right.

    Attributes:
        precision: of the masks that were named, the fraction right; NaN where none was.
        coverage: the fraction named.
        num_masks: whose names are known.
    """

    precision: float
    coverage: float
    num_masks: int

    def __str__(self) -> str:
        return f"precision {self.precision:.2f} at coverage {self.coverage:.2f} of {self.num_masks} named masks"


def precision_on_others(named: Sequence[Named], settings: SemanticsSettings) -> Precision:
    """Calibrated on each half of the patients and told for the other, so that no patient judges itself."""
    halves: tuple[list[Named], list[Named]] = ([], [])
    for one in named:
        halves[_half(one.patient)].append(one)
    is_right = []
    for half, other in (halves, halves[::-1]):
        calibration = Calibration(half, settings)
        proposals = ((calibration.propose(n.guess).name, n.truth) for n in other)
        is_right += [name == truth for name, truth in proposals if name != UNKNOWN]
    precision = float(np.mean(is_right)) if is_right else float("nan")
    return Precision(precision, len(is_right) / max(1, len(named)), len(named))


def _half(patient: str) -> int:
    return hashlib.sha256(patient.encode()).digest()[-1] % 2


def _least_score(scores: np.ndarray, is_right: np.ndarray, min_precision: float) -> float:
    """The least score above which the precision wanted is reached, surely enough; infinite where none is.

    A precision is taken at the lower end of its Wilson interval: the bound that just reaches it on few masks would miss
    it on others as often as not.
    """
    order = np.argsort(-scores, kind="stable")
    count = np.arange(1, len(order) + 1)
    fraction = np.cumsum(is_right[order]) / count
    spread = SURENESS_Z * np.sqrt(fraction * (1 - fraction) / count + (SURENESS_Z / (2 * count)) ** 2)
    least = (fraction + SURENESS_Z**2 / (2 * count) - spread) / (1 + SURENESS_Z**2 / count)
    is_last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    reached = np.flatnonzero((least >= min_precision) & is_last_of_equals)
    return float(scores[order][reached[-1]]) if len(reached) else float("inf")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
