"""Targets that a user works on over many steps: their masks in memory, their steps in the prompt log.

What is in memory is a window onto the log: a target that was pushed out, or belongs to an earlier run of the server,
is replayed from its steps when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from imis_net.errors import PromptError
from imis_net.images import Volume
from imis_net.prompts import Prediction, Prompt
from imis_net.rle import Patch, changed_patch
from imis_net.stopwatch import Stopwatch
from lib.history import History, View, combined, replayed
from lib.infer import Engine
from lib.pictures import Place
from lib.prompt_log import Event, PromptLog, TargetKey
from lib.request import interactive_request

MAX_NUM_TARGETS = 256
"""Kept in memory; the others are in the log."""
KEYS = frozenset(
    ("foreground", "background", "points", "point_labels", "roi", "box", "prompt", "text", "slice", "axis", "window")
)


@dataclass
class _Target:
    """One target's state. ``masks`` by slice, each with the prompt that it answers."""

    history: History = field(default_factory=History)
    view: View = field(default_factory=lambda: View({}))
    predictions: dict[int, Prediction] = field(default_factory=dict)
    is_same_as_logged: bool = True
    num_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Outcome:
    """What a target would be after ``events``."""

    history: History
    view: View
    predictions: dict[int, Prediction]
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What one step changed, slice by slice, and where the target stands now."""

    target: str
    num_done: int
    num_steps: int
    axis: int
    changed: Mapping[int, Patch]
    iou_predictions: Mapping[int, float]
    mask_digest: str
    is_same_as_logged: bool
    latencies_ms: Mapping[str, float]


class Targets:
    """All users' targets. Safe to call from several threads; one target's steps are taken one after another."""

    def __init__(self, engine: Engine, log: PromptLog, categories: tuple[str, ...]) -> None:
        self.engine = engine
        self.log = log
        self.categories = categories
        self._lock = threading.Lock()
        self._targets: OrderedDict[TargetKey, _Target] = OrderedDict()
        self._waiting: dict[TargetKey, deque[Event]] = {}

    def announce(self, key: TargetKey, event: Event) -> None:
        """Take note of a step before its job waits in the queue: a newer job takes older steps along."""
        with self._lock:
            self._waiting.setdefault(key, deque()).append(event)

    def withdraw(self, key: TargetKey, event: Event) -> None:
        """Forget a step that found no place or no image; one that was taken already is no longer here."""
        with self._lock:
            waiting = self._waiting.get(key, deque())
            if event in waiting:
                waiting.remove(event)
            if not waiting:
                self._waiting.pop(key, None)

    def advance(self, key: TargetKey, event: Event, path: Path) -> Answer:
        """Take the announced steps up to this one, and answer for them together.

        Raises:
            PromptError, ImageError: this step cannot be used; nothing has changed but by the steps before it.
        """
        with self.engine.prefetcher.click(), self._opened(key, path) as target:
            return self._advance(key, target, event, path)

    def read(self, key: TargetKey, path: Path) -> tuple[np.ndarray, Volume, int]:
        """The target's mask, uint8 [I, J, K], its volume, and how many steps count."""
        volume = self.engine.volumes.read(path)
        with self._opened(key, path) as target:
            mask = np.zeros(volume.array.shape[:3], np.uint8, order="F")
            slices = np.moveaxis(mask, target.view.axis, -1)
            for index, prediction in target.predictions.items():
                slices[..., index].T[prediction.mask] = 1
            return mask, volume, target.history.num_done

    @contextmanager
    def _opened(self, key: TargetKey, path: Path) -> Iterator[_Target]:
        """The target for this thread alone; while anybody has it open it stays in memory, so that there is one."""
        with self._lock:
            target = self._targets.setdefault(key, _Target())
            self._targets.move_to_end(key)
            target.num_open += 1
        try:
            with target.lock:
                if not target.history.steps:
                    self._replay(key, target, path)
                yield target
        finally:
            with self._lock:
                target.num_open -= 1
                self._push_out()

    def _push_out(self) -> None:
        idle = [key for key, target in self._targets.items() if not target.num_open]
        for key in idle[: max(0, len(self._targets) - MAX_NUM_TARGETS)]:
            del self._targets[key]

    def _replay(self, key: TargetKey, target: _Target, path: Path) -> None:
        events = self.log.read(key)
        if not events:
            return
        target.history = replayed(events)
        volume = self.engine.volumes.read(path)
        target.view, target.predictions = self._predicted(volume, target, target.history, Stopwatch())
        target.is_same_as_logged = _digest(target) == events[-1].mask

    def _advance(self, key: TargetKey, target: _Target, event: Event, path: Path) -> Answer:
        watch = Stopwatch()
        volume = self.engine.volumes.read(path)
        watch.lap("read")
        events, before = self._taken(key, event), dict(target.predictions)
        try:
            outcome = self._tried(volume, target, events, watch)
        except PromptError:  # of any of them: one by one, so that each is refused or taken for itself
            outcome = self._tried(volume, target, events[:-1], watch, is_lenient=True)
            self._keep(key, target, outcome)
            outcome = self._tried(volume, target, [event], watch)
        self._keep(key, target, outcome)
        watch.lap("write")
        self.engine.telemetry.stages(watch.report())
        return _answer(key, target, before, volume, watch)

    def _tried(
        self, volume: Volume, target: _Target, events: Sequence[Event], watch: Stopwatch, is_lenient: bool = False
    ) -> _Outcome:
        """The target after these steps; a lenient try leaves out the steps that cannot be used."""
        outcome = _Outcome(target.history, target.view, target.predictions)
        for event in events:
            try:
                history = outcome.history.then(event)
                if is_lenient or event is events[-1]:
                    view, predictions = self._predicted(volume, target, history, watch)
                    outcome = _Outcome(history, view, predictions, (*outcome.events, event))
                else:
                    outcome = replace(outcome, history=history, events=(*outcome.events, event))
            except PromptError:
                if not is_lenient:
                    raise
        return outcome

    def _keep(self, key: TargetKey, target: _Target, outcome: _Outcome) -> None:
        """On the disk first: what is acknowledged outlives the server."""
        if not outcome.events:
            return
        digest, weights = _digest(outcome), self.engine.segmenter.weights_digest
        self.log.append(key, [Event(e.kind, e.params, weights, digest) for e in outcome.events])
        target.history, target.view, target.predictions = outcome.history, outcome.view, outcome.predictions
        target.is_same_as_logged = True

    def _taken(self, key: TargetKey, event: Event) -> list[Event]:
        """The waiting steps up to this one; none of them is taken twice."""
        taken = []
        with self._lock:
            waiting = self._waiting.get(key, deque())
            while waiting:
                taken.append(waiting.popleft())
                if taken[-1] is event:
                    break
            if not waiting:
                self._waiting.pop(key, None)
        return taken

    def _view(self, volume: Volume, history: History) -> View:
        i, j, k = volume.array.shape[:3]
        return combined([interactive_request(step.params, (i, j, k), self.categories) for step in history.done])

    def _predicted(
        self, volume: Volume, target: _Target, history: History, watch: Stopwatch
    ) -> tuple[View, dict[int, Prediction]]:
        """Masks of the prompted slices; those whose prompt is the same as before are kept."""
        segmenter, view = self.engine.segmenter, self._view(volume, history)
        is_same_view = (view.axis, view.window) == (target.view.axis, target.view.window)
        predictions: dict[int, Prediction] = {}
        for index, prompt in view.prompts.items():
            old = target.view.prompts.get(index) if is_same_view else None
            if old is not None and index in target.predictions and _is_same(old, prompt):
                predictions[index] = target.predictions[index]
                continue
            place = Place(volume, view.axis, index, view.window)
            picture = self.engine.pictures.of(place)
            watch.lap("slice")
            embedding, _ = self.engine.embed(segmenter, picture)
            watch.lap("encode")
            (predictions[index],) = self.engine.predict(segmenter, embedding, picture, [prompt])
            watch.lap("predict")
            self.engine.prefetcher.around(place)
        return view, predictions


def _answer(
    key: TargetKey, target: _Target, before: Mapping[int, Prediction], volume: Volume, watch: Stopwatch
) -> Answer:
    changed = {}
    for index in sorted({*before, *target.predictions}):
        masks = [p.mask if p else None for p in (before.get(index), target.predictions.get(index))]
        empty = np.zeros_like(next(m for m in masks if m is not None))
        patch = changed_patch(*(empty if m is None else m for m in masks))
        if patch is not None:
            changed[index] = patch
    return Answer(
        key.target,
        target.history.num_done,
        len(target.history.steps),
        target.view.axis,
        changed,
        {index: round(p.iou_prediction, 4) for index, p in target.predictions.items()},
        _digest(target),
        target.is_same_as_logged,
        watch.report(),
    )


def _is_same(one: Prompt, other: Prompt) -> bool:
    arrays = ("point_coords", "point_labels", "box")
    return one.text == other.text and all(_is_equal(getattr(one, n), getattr(other, n)) for n in arrays)


def _is_equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _digest(target: _Target | _Outcome) -> str:
    """Of every voxel of the mask."""
    digest = hashlib.blake2b(str(target.view.axis).encode(), digest_size=16)
    for index, prediction in sorted(target.predictions.items()):
        if prediction.mask.any():
            digest.update(f"{index} {prediction.mask.shape}".encode() + np.packbits(prediction.mask).tobytes())
    return digest.hexdigest()
