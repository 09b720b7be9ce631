"""Guesses, their calibration, and when to say nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from imis_net.data_engine.semantics import (
    UNKNOWN,
    Calibration,
    Guess,
    Proposal,
    guess_by_semantic_head,
    guess_by_text_prompts,
    precision_at_coverage,
)
from imis_net.data_engine.settings import SemanticsSettings
from imis_net.errors import DatasetError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt

SETTINGS = SemanticsSettings(min_precision=0.9, min_calibration_masks=30)


class Halves:
    """Knows the left half as liver and the right one as spleen."""

    image_size = 16
    encoder_digest = "halves"
    known_texts = ("liver", "spleen")

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        return ImageEmbedding((torch.empty(1, 0),), (image.shape[0], image.shape[1]), "halves")

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        mask = np.zeros(embedding.original_size, bool)
        half = mask.shape[1] // 2
        mask[:, slice(half) if prompt.text == "liver" else slice(half, None)] = True
        return Prediction(mask, 1.0, np.zeros((4, 4), np.float32))

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [self.predict(embedding, p) for p in prompts]


def test_the_nearest_text_names_a_vector() -> None:
    """Breaks if length counts as likeness, or names are shifted by one."""
    guesses = guess_by_semantic_head(np.array([[0.1, 0.0], [5.0, 6.0]]), np.array([[9.0, 0.0], [0.0, 0.5]]), ["a", "b"])
    assert guesses[0] == Guess("a", 1.0)
    assert guesses[1].name == "b"
    assert guesses[1].score == pytest.approx(6 / 61**0.5)


def test_spaces_of_two_sizes_are_refused() -> None:
    """Breaks if a head that cannot name gives names."""
    with pytest.raises(DatasetError, match=r"512.*192"):
        guess_by_semantic_head(np.ones((1, 512)), np.ones((3, 192)), ["a", "b", "c"])


def test_what_is_drawn_for_a_name_names_a_mask() -> None:
    """Breaks if masks and names are transposed."""
    mask = np.zeros((4, 8), bool)
    mask[:, 5:] = True
    segmenter = Halves()
    embedding = segmenter.encode_image(np.zeros((4, 8, 3), np.uint8))
    assert guess_by_text_prompts(segmenter, embedding, [mask, ~mask], ["liver", "spleen"]) == [
        Guess("spleen", 0.75),
        Guess("liver", 0.8),
    ]
    assert guess_by_text_prompts(segmenter, embedding, [], ["liver"]) == []


def test_only_scores_that_were_right_are_told() -> None:
    """Breaks if the bound lets in what was wrong too often, or confidence is not the fraction right."""
    scores = np.linspace(0, 1, 101)
    guesses = [Guess("liver", s) for s in scores]
    truths = ["liver" if s > 0.495 else "spleen" for s in scores]
    calibration = Calibration(guesses, truths, SETTINGS)
    assert calibration.propose(Guess("liver", 0.9)) == Proposal("liver", 1.0)
    assert calibration.propose(Guess("liver", 0.2)) == Proposal(UNKNOWN, 0.0)
    precision, coverage = precision_at_coverage([calibration.propose(g) for g in guesses], truths)
    assert 0.9 <= precision < 0.95, "as many are told as the precision allows"
    assert coverage == pytest.approx(56 / 101, abs=0.01)


def test_equal_scores_are_told_together_or_not() -> None:
    """Breaks if the order of equals decides: right ones first would look precise."""
    guesses = [Guess("a", 0.5)] * 100
    assert Calibration(guesses, ["a"] * 50 + ["b"] * 50, SETTINGS).propose(guesses[0]) == Proposal(UNKNOWN, 0.5)


def test_few_masks_calibrate_nothing() -> None:
    """Breaks if three lucky guesses make everything known."""
    guesses = [Guess("liver", 1.0)] * 29
    assert Calibration(guesses, ["liver"] * 29, SETTINGS).propose(guesses[0]) == Proposal(UNKNOWN, 0.0)


def test_nothing_named_has_no_precision() -> None:
    """Breaks if silence counts as perfect, or as all wrong."""
    precision, coverage = precision_at_coverage([Proposal(UNKNOWN, 0.1)], ["liver"])
    assert np.isnan(precision)
    assert coverage == 0
