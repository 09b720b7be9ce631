"""Who asked what last, so that a click that only adds to the previous prompt can build on its mask.

Viewers send every click each time. The previous mask is right only if the new prompt is the old one plus something;
after an undo, or a moved click, it would drag the old mistake along.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from imis_net.prompts import Prediction, Prompt

MAX_NUM_TARGETS = 256
"""About 16 MB of low-res masks at 128 x 128."""


class PromptMemory:
    """The last prompt and low-res mask by target (user, image slice and label). Thread safe, bounded."""

    def __init__(self, max_num_targets: int = MAX_NUM_TARGETS) -> None:
        self.max_num_targets = max_num_targets
        self._lock = threading.Lock()
        self._last: OrderedDict[Hashable, tuple[Prompt, np.ndarray]] = OrderedDict()

    def continued(self, target: Hashable, prompt: Prompt) -> Prompt:
        """The prompt with the previous mask if it adds to the previous prompt, otherwise as it is."""
        with self._lock:
            last = self._last.get(target)
        if last is None or not adds_to(prompt, last[0]):
            return prompt
        return replace(prompt, low_res_mask=last[1])

    def remember(self, target: Hashable, prompt: Prompt, prediction: Prediction) -> None:
        with self._lock:
            self._last[target] = (replace(prompt, low_res_mask=None), prediction.low_res_mask)
            self._last.move_to_end(target)
            while len(self._last) > self.max_num_targets:
                self._last.popitem(last=False)


def adds_to(new: Prompt, old: Prompt) -> bool:
    """Whether ``new`` holds everything of ``old`` and something more."""
    return _facts(new) > _facts(old)


def _facts(prompt: Prompt) -> set[tuple[object, ...]]:
    facts: set[tuple[object, ...]] = set()
    if prompt.point_coords is not None and prompt.point_labels is not None:
        facts |= {(*xy, kind) for xy, kind in zip(prompt.point_coords.tolist(), prompt.point_labels, strict=True)}
    if prompt.box is not None:
        facts.add(("box", *prompt.box.tolist()))
    if prompt.text is not None:
        facts.add(("text", prompt.text))
    return facts
