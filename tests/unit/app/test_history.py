"""lib.history and lib.prompt_log: undo and redo as a fold over what is on the disk."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from imis_net.errors import PromptError
from lib.history import History, combined, replayed
from lib.prompt_log import Event, PromptLog, TargetKey
from lib.request import interactive_request

SHAPE = (40, 30, 5)


def _prompt(n: int) -> Event:
    return Event("prompt", {"foreground": [[n % 40, n % 30, n % 5]]})


def test_sixty_steps_undo_to_nothing_and_redo_to_the_end() -> None:
    """Breaks if undo is bounded below 50 steps, loses one, or changes their order."""
    history = replayed(_prompt(n) for n in range(60))
    full = list(history.done)
    for n in range(60):
        history = history.then(Event("undo", {}))
        assert len(history.done) == 59 - n
    with pytest.raises(PromptError, match="nothing to undo"):
        history.then(Event("undo", {}))
    for _ in range(60):
        history = history.then(Event("redo", {}))
    assert list(history.done) == full
    with pytest.raises(PromptError, match="nothing to redo"):
        history.then(Event("redo", {}))


def test_any_walk_of_undo_and_redo_equals_the_list_it_stands_for() -> None:
    """Breaks if a new prompt after an undo keeps what it replaced, or a clear cannot be undone."""
    rng, history = random.Random(0), History()
    done: list[object] = []
    undone: list[object] = []
    for n in range(500):
        kind = rng.choice(["prompt", "prompt", "undo", "redo", "clear"])
        event = _prompt(n) if kind == "prompt" else Event(kind, {})
        if (kind == "undo" and not done) or (kind == "redo" and not undone):
            continue
        history = history.then(event)
        if kind == "undo":
            undone.append(done.pop())
        elif kind == "redo":
            done.append(undone.pop())
        else:
            done.append(event)
            undone.clear()
        cleared = [i for i, e in enumerate(done, 1) if e.kind == "clear"]  # type: ignore[attr-defined]
        assert list(history.done) == done[cleared[-1] if cleared else 0 :]


def test_a_slices_prompt_is_all_clicks_and_the_newest_box() -> None:
    """Breaks if a later step drops earlier clicks, or an old box outlives a newer one."""
    steps: list[dict[str, object]] = [
        {"foreground": [[1, 2, 3]], "box": [0, 0, 9, 9, 3]},
        {"background": [[4, 5, 3]]},
        {"box": [1, 1, 8, 8, 3]},
        {"foreground": [[7, 7, 1]]},
    ]
    view = combined([interactive_request(s, SHAPE, ()) for s in steps])
    assert sorted(view.prompts) == [1, 3]
    assert np.array_equal(view.prompts[3].point_coords, [[1, 2], [4, 5]])  # type: ignore[arg-type]
    assert view.prompts[3].point_labels.tolist() == [1, 0]  # type: ignore[union-attr]
    assert view.prompts[3].box.tolist() == [1, 1, 8, 8]  # type: ignore[union-attr]
    with pytest.raises(PromptError, match="axis: expected 2"):
        combined([interactive_request({**s, "axis": n}, SHAPE, ()) for n, s in ((2, steps[0]), (0, steps[3]))])


def test_the_log_keeps_users_images_and_targets_apart(tmp_path: Path) -> None:
    """Breaks if one annotator's steps, or another target's, turn up in somebody's replay."""
    path = tmp_path / "prompts.sqlite"
    log = PromptLog(path)
    keys = [TargetKey(u, i, t) for u in ("ann", "bob") for i in ("1", "2") for t in ("liver", "li'ver\u00fc")]
    for n in range(3):
        for m, key in enumerate(keys):
            log.append(key, [Event("prompt", {"foreground": [[n, m, 0]]}, "weights", f"mask{n}")])
    log.close()
    again = PromptLog(path)
    for m, key in enumerate(keys):
        events = again.read(key)
        assert [json.dumps(dict(e.params)) for e in events] == [f'{{"foreground": [[{n}, {m}, 0]]}}' for n in range(3)]
        assert events[-1].mask == "mask2"
    assert again.targets("ann", "1") == ["liver", "li'ver\u00fc"]
    assert path.stat().st_mode & 0o077 == 0
    again.close()
