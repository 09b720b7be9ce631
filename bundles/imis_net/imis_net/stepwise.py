"""A prompt answered as it came about: one click after another, each beside the mask before it.

Viewers send every click each time. The steps to an answer follow from the prompt alone, so that equal prompts get equal
masks whatever was asked before, after an undo too; the masks on the way are remembered, so that a further click costs
one decoder call.
Source: mask feedback as in RITM (arXiv 2102.06583) and in Segment Anything's simulated interaction (appendix A).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import Segmenter

MAX_NUM_STEPS = 20
"""Clicks that are taken one by one; further ones are asked together, with the mask of these."""
MIN_FED_BACK = 0.5
"""Predicted IoU below which a mask is not built on: a first answer that is all wrong would hold its corrections back.
Chosen by training patients' clicks, with the sets in view on which first clicks fail."""
MAX_NUM_MASKS = 512
"""32 MB at 128 x 128."""

_Key = tuple[object, ...]


class StepwisePredictor:
    """Remembers masks between calls, but none that changes an answer. Thread safe, bounded."""

    def __init__(self, max_num_masks: int = MAX_NUM_MASKS) -> None:
        self.max_num_masks = max_num_masks
        self._lock = threading.Lock()
        self._masks: OrderedDict[_Key, np.ndarray | None] = OrderedDict()

    def predict(self, segmenter: Segmenter, embedding: ImageEmbedding, image: str, prompt: Prompt) -> Prediction:
        return self.predict_batch(segmenter, embedding, image, [prompt])[0]

    def predict_batch(
        self, segmenter: Segmenter, embedding: ImageEmbedding, image: str, prompts: Sequence[Prompt]
    ) -> list[Prediction]:
        """Several targets of one image, in the prompts' order.

        Args:
            image: identifies what was embedded.
            prompts: one that brings a previous mask of its own is asked as it is.

        Raises:
            PromptError: as the segmenter does.
        """
        network = (segmenter.weights_digest, image)
        left = [self._left(network, prompt) for prompt in prompts]
        answers: dict[int, Prediction] = {}
        while asked := {i: steps[0] for i, steps in enumerate(left) if steps}:
            predictions = segmenter.predict_batch(embedding, list(asked.values()))
            for (i, step), prediction in zip(asked.items(), predictions, strict=True):
                answers[i] = prediction
                mask = _fed_back(prediction)
                self._remember((*network, *_facts(step)), mask)
                left[i] = left[i][1:]
                if left[i]:
                    left[i][0] = replace(left[i][0], low_res_mask=mask)
        return [answers[i] for i in range(len(prompts))]

    def _left(self, network: _Key, prompt: Prompt) -> list[Prompt]:
        """The steps whose answers are not known, the prompt itself always; the first with the mask before it."""
        steps = _steps(prompt)
        with self._lock:
            for i in reversed(range(1, len(steps))):
                key = (*network, *_facts(steps[i - 1]))
                if key in self._masks:
                    self._masks.move_to_end(key)
                    return [replace(steps[i], low_res_mask=self._masks[key]), *steps[i + 1 :]]
        return steps

    def _remember(self, key: _Key, mask: np.ndarray | None) -> None:
        with self._lock:
            self._masks[key] = mask
            self._masks.move_to_end(key)
            while len(self._masks) > self.max_num_masks:
                self._masks.popitem(last=False)


def _steps(prompt: Prompt) -> list[Prompt]:
    """The prompt as it grew: box and text stand from the first step on, clicks come in their order."""
    if prompt.low_res_mask is not None:
        return [prompt]
    first = 1 if prompt.box is None and prompt.text is None else 0
    return [*(_with_clicks(prompt, n) for n in range(first, min(prompt.num_clicks, MAX_NUM_STEPS + 1))), prompt]


def _with_clicks(prompt: Prompt, number: int) -> Prompt:
    coords, labels = prompt.point_coords, prompt.point_labels
    if coords is None or labels is None or number == 0:
        return replace(prompt, point_coords=None, point_labels=None)
    return replace(prompt, point_coords=coords[:number], point_labels=labels[:number])


def _fed_back(prediction: Prediction) -> np.ndarray | None:
    is_built_on = prediction.iou_prediction >= MIN_FED_BACK and prediction.mask.any()
    return prediction.low_res_mask if is_built_on else None


def _facts(prompt: Prompt) -> _Key:
    """What a step asks; the mask before it follows from that."""
    arrays = (prompt.point_coords, prompt.point_labels, prompt.box)
    return (prompt.text, *(None if a is None else a.tobytes() for a in arrays))
