"""lib.sessions: the previous mask is used only where the new prompt is the old one plus something."""

from __future__ import annotations

import numpy as np
import pytest

from imis_net.prompts import Prediction, Prompt
from lib.sessions import PromptMemory, adds_to


def clicks(*xyk: tuple[float, float, int], **more: object) -> Prompt:
    coords = np.array([c[:2] for c in xyk], np.float32) if xyk else None
    return Prompt(coords, np.array([c[2] for c in xyk]) if xyk else None, **more)  # type: ignore[arg-type]


ONE = clicks((5, 6, 1))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (clicks((5, 6, 1), (9, 9, 0)), True),
        (clicks((9, 9, 0), (5, 6, 1)), True),
        (clicks((5, 6, 1), box=[0, 0, 9, 9]), True),
        (clicks((5, 6, 1), text="liver"), True),
        (clicks((5, 6, 1)), False),
        (clicks((5, 7, 1), (9, 9, 0)), False),
        (clicks((5, 6, 0), (9, 9, 0)), False),
        (clicks(text="liver"), False),
    ],
)
def test_only_a_larger_prompt_continues(new: Prompt, expected: bool) -> None:
    """Breaks when an undone, moved or relabelled click keeps its old mask, or a real addition loses it."""
    assert adds_to(new, ONE) is expected


def test_memory_keeps_users_apart_and_stays_small() -> None:
    """Breaks when one annotator's mask reaches another, or the memory grows without bound."""
    memory = PromptMemory(max_num_targets=2)
    mask = np.ones((4, 4), np.float32)
    memory.remember("ann", ONE, Prediction(mask > 0, 0.9, mask))
    more = clicks((5, 6, 1), (9, 9, 0))
    assert memory.continued("ann", more).low_res_mask is not None
    assert memory.continued("bob", more).low_res_mask is None
    for user in ("bob", "eve"):
        memory.remember(user, ONE, Prediction(mask > 0, 0.9, mask))
    assert memory.continued("ann", more).low_res_mask is None
