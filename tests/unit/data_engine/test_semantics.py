"""Guesses, their calibration, and when to say nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from imis_net.data_engine.semantics import (
    UNKNOWN,
    Calibration,
    Guess,
    Named,
    Proposal,
    draw_names,
    guess_by_drawn,
    guess_by_semantic_head,
    precision_on_others,
)
from imis_net.data_engine.settings import SemanticsSettings
from imis_net.errors import DatasetError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.transforms import Frame

SETTINGS = SemanticsSettings(min_precision=0.9, min_calibration_masks=30)


class Halves:
    """Knows the left half as liver and the right one as spleen."""

    frame = Frame(16)
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
    drawn = draw_names(segmenter, embedding, ["liver", "spleen"])
    assert guess_by_drawn([mask, ~mask], drawn) == [Guess("spleen", 0.75), Guess("liver", 0.8)]
    assert guess_by_drawn([], drawn) == []


def test_only_scores_that_were_right_are_told() -> None:
    """Breaks if the bound lets in what was wrong too often, or confidence is not the fraction right."""
    scores = np.linspace(0, 1, 101)
    named = [Named(Guess("liver", s), "liver" if s > 0.495 else "spleen", "") for s in scores]
    calibration = Calibration(named, SETTINGS)
    assert calibration.propose(Guess("liver", 0.9)) == Proposal("liver", 1.0)
    assert calibration.propose(Guess("liver", 0.2)) == Proposal(UNKNOWN, 0.0)
    told = [n.truth == "liver" for n in named if calibration.propose(n.guess).name != UNKNOWN]
    assert 0.93 <= np.mean(told) < 0.97, "as many are told as the precision allows, surely enough"
    assert len(told) == 53


def test_equal_scores_are_told_together_or_not() -> None:
    """Breaks if the order of equals decides: right ones first would look precise."""
    guess = Guess("a", 0.5)
    named = [Named(guess, "a", "")] * 50 + [Named(guess, "b", "")] * 50
    assert Calibration(named, SETTINGS).propose(guess) == Proposal(UNKNOWN, 0.5)


def test_few_masks_calibrate_nothing() -> None:
    """Breaks if three lucky guesses make everything known."""
    guess = Guess("liver", 1.0)
    assert Calibration([Named(guess, "liver", "")] * 29, SETTINGS).propose(guess) == Proposal(UNKNOWN, 0.0)


def test_nothing_named_has_no_precision() -> None:
    """Breaks if silence counts as perfect, or as all wrong."""
    precision = precision_on_others([Named(Guess("liver", 0.1), "spleen", "p")] * 5, SETTINGS)
    assert np.isnan(precision.precision)
    assert (precision.coverage, precision.num_masks) == (0, 5)


def test_no_patient_judges_itself() -> None:
    """Breaks if a calibration is judged on the masks it was made of: here each half is right where the other is
    wrong, so that what looks precise on one is wrong on the other."""
    patients = [str(i) for i in range(400)]
    halves = [hashlib.sha256(p.encode()).digest()[-1] % 2 for p in patients]
    named = [
        Named(Guess("liver", 0.9 if i % 2 else 0.1), "liver" if i % 2 == half else "spleen", p)
        for i, (p, half) in enumerate(zip(patients, halves, strict=True))
    ]
    precision = precision_on_others(named, SETTINGS)
    assert precision.precision == 0
    assert precision.num_masks == 400
