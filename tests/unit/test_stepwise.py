"""A prompt's answer follows from its clicks one by one, whatever is remembered."""

from __future__ import annotations

import numpy as np
import pytest

from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.stepwise import MAX_NUM_STEPS, MIN_FED_BACK, StepwisePredictor

EMBEDDING = ImageEmbedding((), (64, 64), "e")
SIDE = 4


class Recorder:
    """Answers the n-th prompt with logits of n, and keeps what it was asked."""

    def __init__(self, rating: float = 0.9, weights_digest: str = "w") -> None:
        self.asked: list[Prompt] = []
        self.calls = 0
        self.rating, self.weights_digest = rating, weights_digest

    def predict_batch(self, embedding: ImageEmbedding, prompts: list[Prompt]) -> list[Prediction]:
        self.calls += 1
        answers = []
        for prompt in prompts:
            self.asked.append(prompt)
            logits = np.full((SIDE, SIDE), float(len(self.asked)), np.float32)
            answers.append(Prediction(np.ones((64, 64), bool), self.rating, logits))
        return answers

    def masks(self) -> list[float | None]:
        """What each call had before it."""
        return [None if p.low_res_mask is None else float(p.low_res_mask[0, 0]) for p in self.asked]


def clicks(number: int, **more: object) -> Prompt:
    coords = np.array([[i, i] for i in range(number)], np.float32).reshape(-1, 2)
    return Prompt(coords, np.ones(number), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "num_clicks"),
    [
        (clicks(1), [1]),
        (clicks(3), [1, 2, 3]),
        (clicks(2, box=[0, 0, 9, 9]), [0, 1, 2]),
        (clicks(1, text="liver"), [0, 1]),
        (Prompt(text="liver"), [0]),
        (clicks(2, low_res_mask=np.full((SIDE, SIDE), 7.0)), [2]),
    ],
)
def test_each_click_has_the_mask_before_it(prompt: Prompt, num_clicks: list[int]) -> None:
    """Breaks when a step is left out, box or text come late, or a mask that was given is replaced."""
    recorder = Recorder()
    answer = StepwisePredictor().predict(recorder, EMBEDDING, "image", prompt)
    assert [p.num_clicks for p in recorder.asked] == num_clicks
    assert {(p.text, p.box is None) for p in recorder.asked} == {(prompt.text, prompt.box is None)}
    given = None if prompt.low_res_mask is None else 7.0
    assert recorder.masks() == [given, *map(float, range(1, len(num_clicks)))]
    assert answer.low_res_mask[0, 0] == len(num_clicks)


def test_what_was_answered_before_is_not_asked_again() -> None:
    """Breaks when a further click, or one after an undo, costs more than one call, or another's image, weights or
    click is taken for it."""
    predictor, recorder = StepwisePredictor(), Recorder()
    for prompt, image, expected in (
        (clicks(2), "a", [1, 2]),
        (clicks(3), "a", [3]),
        (clicks(2), "a", [2]),
        (clicks(2), "b", [1, 2]),
        (Prompt(np.array([[9, 9], [1, 1]]), np.ones(2)), "a", [1, 2]),
    ):
        recorder.asked.clear()
        predictor.predict(recorder, EMBEDDING, image, prompt)
        assert [p.num_clicks for p in recorder.asked] == expected
    other = Recorder(weights_digest="other")
    predictor.predict(other, EMBEDDING, "a", clicks(2))
    assert len(other.asked) == 2


def test_several_targets_take_their_steps_together() -> None:
    """Breaks when each target waits for the one before it, or they are mixed up."""
    recorder = Recorder()
    prompts = [clicks(1), clicks(3), Prompt(text="liver")]
    answers = StepwisePredictor().predict_batch(recorder, EMBEDDING, "image", prompts)
    assert recorder.calls == 3
    assert [answer.low_res_mask[0, 0] for answer in answers] == [1, 5, 3]
    assert recorder.masks()[3:] == [2, 4]


@pytest.mark.parametrize(("rating", "is_fed_back"), [(MIN_FED_BACK, True), (MIN_FED_BACK - 0.01, False)])
def test_a_mask_that_is_rated_badly_is_not_built_on(rating: float, is_fed_back: bool) -> None:
    """Breaks when a wrong first answer holds its corrections back, remembered or not."""
    predictor, recorder = StepwisePredictor(), Recorder(rating)
    predictor.predict(recorder, EMBEDDING, "image", clicks(2))
    predictor.predict(recorder, EMBEDDING, "image", clicks(3))
    assert [mask is not None for mask in recorder.masks()] == [False, is_fed_back, is_fed_back]


def test_a_hostile_number_of_clicks_costs_a_bounded_number_of_calls() -> None:
    """Breaks when one request of many clicks holds a worker for seconds, or a bounded memory grows."""
    predictor, recorder = StepwisePredictor(max_num_masks=2), Recorder()
    predictor.predict(recorder, EMBEDDING, "image", clicks(200))
    assert [p.num_clicks for p in recorder.asked] == [*range(1, MAX_NUM_STEPS + 1), 200]
    assert recorder.masks()[-1] == MAX_NUM_STEPS
    assert len(predictor._masks) == 2
