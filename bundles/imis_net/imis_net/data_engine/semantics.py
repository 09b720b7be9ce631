"""Names for masks that nobody named: a guess with a calibrated confidence, or "unknown".

Two sources of evidence, one scale:

- the semantic head: its vector against the text embeddings of the names, by cosine. Only for networks whose two spaces
  are one (512 both) and whose head was trained;
- the text prompt: what the network draws when it is asked for a name, against the mask, by IoU. Needs no head, so it
  serves the compact default.

Confidence is the fraction of named masks with such a score whose guess was right, by isotonic regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from imis_net.data_engine.regions import mask_iou
from imis_net.data_engine.settings import SemanticsSettings
from imis_net.errors import DatasetError
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import Segmenter

UNKNOWN = "unknown"


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


def guess_by_text_prompts(
    segmenter: Segmenter, embedding: ImageEmbedding, masks: Sequence[np.ndarray], names: Sequence[str]
) -> list[Guess]:
    """Ask for each name once; a mask gets the name whose answer shares most with it.

    Raises:
        PromptError: a name that the network does not know.
    """
    answers = segmenter.predict_batch(embedding, [Prompt(text=name) for name in names])
    ious = np.array([[mask_iou(m, a.mask) for a in answers] for m in masks]).reshape(len(masks), len(names))
    return [Guess(names[i], float(row[i])) for row, i in zip(ious, ious.argmax(axis=1), strict=True)]


class Calibration:
    """Raw score -> confidence, and the confidence from which a guess is told."""

    def __init__(self, guesses: Sequence[Guess], truths: Sequence[str], settings: SemanticsSettings) -> None:
        self.bound = np.inf
        scores = np.array([g.score for g in guesses])
        is_right = np.array([g.name == t for g, t in zip(guesses, truths, strict=True)], float)
        self._curve: IsotonicRegression | None = None
        if len(guesses) < settings.min_calibration_masks:
            return
        self._curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, is_right)
        self.bound = _least_score(scores, is_right, settings.min_precision)

    def propose(self, guess: Guess) -> Proposal:
        if self._curve is None:
            return Proposal(UNKNOWN, 0.0)
        confidence = float(self._curve.predict([guess.score])[0])
        return Proposal(guess.name if guess.score >= self.bound else UNKNOWN, confidence)


def precision_at_coverage(proposals: Sequence[Proposal], truths: Sequence[str]) -> tuple[float, float]:
    """(fraction right of those named, fraction named); NaN precision where nothing was named."""
    named = [p.name == t for p, t in zip(proposals, truths, strict=True) if p.name != UNKNOWN]
    return (float(np.mean(named)) if named else float("nan")), len(named) / max(1, len(proposals))


def _least_score(scores: np.ndarray, is_right: np.ndarray, min_precision: float) -> float:
    """The least score above which the precision wanted is reached; infinite where none is."""
    order = np.argsort(-scores, kind="stable")
    precision = np.cumsum(is_right[order]) / np.arange(1, len(order) + 1)
    is_last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    reached = np.flatnonzero((precision >= min_precision) & is_last_of_equals)
    return float(scores[order][reached[-1]]) if len(reached) else float("inf")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
