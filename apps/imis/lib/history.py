"""Steps of one target with undo and redo: a fold over its events, so that a replay is the same computation.

The combined prompt of a slice is all clicks since the last clear with the newest box and text, so that a mask depends
on the steps that count and on nothing else: not on the order of undo and redo, not on earlier masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imis_net.errors import PromptError
from imis_net.prompts import Prompt
from lib.prompt_log import Event
from lib.request import Request


@dataclass(frozen=True)
class History:
    """Steps done and undone: the first ``num_done`` count, the others wait for a redo."""

    steps: tuple[Event, ...] = ()
    num_done: int = 0

    @property
    def done(self) -> Sequence[Event]:
        """The steps that count: since the last clear."""
        done = self.steps[: self.num_done]
        last_clear = max((n for n, step in enumerate(done, 1) if step.kind == "clear"), default=0)
        return done[last_clear:]

    def then(self, event: Event) -> History:
        """The history after one more event.

        Raises:
            PromptError: nothing to undo or redo.
        """
        if event.kind == "undo":
            if not self.num_done:
                raise PromptError("nothing to undo")
            return History(self.steps, self.num_done - 1)
        if event.kind == "redo":
            if self.num_done == len(self.steps):
                raise PromptError("nothing to redo")
            return History(self.steps, self.num_done + 1)
        return History((*self.steps[: self.num_done], event), self.num_done + 1)


def replayed(events: Iterable[Event]) -> History:
    history = History()
    for event in events:
        history = history.then(event)
    return history


@dataclass(frozen=True)
class View:
    """What steps ask of one volume: a prompt for each prompted slice."""

    prompts: Mapping[int, Prompt]
    axis: int = 2
    window: tuple[float, float] | None = None


def combined(requests: Sequence[Request]) -> View:
    """The steps' requests as one prompt per slice.

    Raises:
        PromptError: steps along different axes.
    """
    axes = {request.axis for request in requests}
    if len(axes) > 1:
        raise PromptError(
            f"axis: expected {requests[0].axis} as in the first step, got {requests[-1].axis}; clear first"
        )
    by_slice: dict[int, list[Prompt]] = {}
    for target in (target for request in requests for target in request.targets):
        by_slice.setdefault(target.slice, []).append(target.prompt)
    windows = [request.window for request in requests if request.window]
    prompts = {index: _joined(members) for index, members in by_slice.items()}
    return View(prompts, axes.pop() if axes else 2, windows[-1] if windows else None)


def _joined(prompts: Sequence[Prompt]) -> Prompt:
    coords = [p.point_coords for p in prompts if p.point_coords is not None]
    labels = [p.point_labels for p in prompts if p.point_labels is not None]
    return Prompt(
        point_coords=np.concatenate(coords) if coords else None,
        point_labels=np.concatenate(labels) if labels else None,
        box=next((p.box for p in reversed(prompts) if p.box is not None), None),
        text=next((p.text for p in reversed(prompts) if p.text is not None), None),
    )
