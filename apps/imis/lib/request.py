"""What viewers send -> prompts. The only place where a voxel index (i, j, k) becomes a pixel (x, y) of a slice.

Every viewer has its own dialect of one JSON object; all of them are accepted here:

============================  =====================================================================================
``foreground, background``    lists of [i, j, k]; either may be absent (Slicer and OHIF, deepgrow)
``points, point_labels``      the same as one list and its 1/0 labels (OHIF, vista3d)
``<a label's name>``          that label's clicks; ``background`` clicks are shared (deepedit)
``roi``                       [i0, i1, j0, j1, k0, k1] in any order (Slicer), or its first four
``box``                       x0, y0, x1, y1[, slice] as a list or typed with commas
``prompt``                    "box": the last two foreground clicks are opposite corners (OHIF has no box tool)
``text``                      a target in words; unknown words are an error
``label, label_prompt``       the segment's name, or 1-based indices of the model's labels; a text only if nothing
                              else was given, since a user may call a clicked segment whatever they like
``slice, axis, window``       which slice along which voxel axis (default 2), shown at [centre, width]
============================  =====================================================================================

Empty strings and lists mean absent. Without ``slice`` each clicked slice is a target of its own, because both viewers
send the clicks of all slices each time and put the answer in place of the whole segment.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imis_net.errors import PromptError
from imis_net.prompts import MAX_NUM_CLICKS, Prompt

_NOT_LABELS = {"foreground", "background", "points", "point_labels", "roi", "box", "window", "label_prompt"}
_AXIS_NAMES = "ijk"
_EXPRESSION_MARKS = ("$", "@", "%")
"""MONAI's configuration parser evaluates such strings; nothing here does, and none is a name of anything."""

Click = tuple[float, float, int]
"""x, y, slice."""


@dataclass(frozen=True)
class Target:
    """One thing to segment on one slice. ``is_guess``: nobody asked for it by name."""

    name: str
    slice: int
    prompt: Prompt
    is_guess: bool = False


@dataclass(frozen=True)
class Request:
    """Targets of one call, all seen along one voxel axis at one intensity window (centre, width)."""

    targets: tuple[Target, ...]
    axis: int = 2
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Region:
    """A box x0, y0, x1, y1 on the slices first..last, as sent: possibly beyond the image."""

    box: tuple[float, float, float, float]
    first: int
    last: int


@dataclass(frozen=True)
class _Frame:
    """The slices of a volume along one voxel axis; x and y are the two other axes in order."""

    shape: tuple[int, int, int]
    axis: int

    @property
    def num_slices(self) -> int:
        return self.shape[self.axis]

    @property
    def in_plane(self) -> tuple[int, int]:
        x_axis, y_axis = (a for a in range(3) if a != self.axis)
        return x_axis, y_axis

    def click(self, voxel: object, key: str) -> Click:
        if not isinstance(voxel, list | tuple) or len(voxel) not in (2, 3):
            raise PromptError(f"{key}: expected clicks [i, j, k], got {_shown(voxel)}")
        if len(voxel) == 2 and self.shape[2] > 1:
            raise PromptError(f"{key}: expected clicks [i, j, k] in a volume, got {_shown(voxel)}")
        ijk = [_number(v, key) for v in voxel] + [0.0] * (3 - len(voxel))
        for name, value, size in zip(_AXIS_NAMES, ijk, self.shape, strict=True):
            if not -0.5 <= value <= size - 0.5:
                raise PromptError(f"{key}: click outside the image: got {name}={value:g}, expected 0..{size - 1}")
        x_axis, y_axis = self.in_plane
        return ijk[x_axis], ijk[y_axis], self.checked(round(ijk[self.axis]), key)

    def checked(self, index: int, key: str) -> int:
        if not 0 <= index < self.num_slices:
            raise PromptError(f"{key}: slice out of range: got {index}, expected 0..{self.num_slices - 1}")
        return index


def interactive_request(
    params: Mapping[str, object], shape: tuple[int, int, int], categories: Sequence[str]
) -> Request:
    """Clicks, box and text, in any combination, for an image of ``shape`` voxels (i, j, k).

    Raises:
        PromptError: no prompt, or one that cannot be used.
    """
    frame = _Frame(shape, _axis(params))
    clicks = _clicks(params, frame)
    region = _box(params, frame) or _roi(params, frame)
    if _choice(params, "prompt", ("points", "box")) == "box":
        clicks, region = _corners(clicks)
    wanted = _slice(params, frame, region)
    text = _text(params, "text")
    if not clicks and region is None and text is None:
        return classes_request(params, shape, categories)
    name = _name(params, categories) or text or "target"
    targets = [
        Target(name if given is None else given, index, prompt)
        for given, members in (clicks or {None: []}).items()
        for index, prompt in _prompts(members, region, text, wanted, frame)
    ]
    if not targets:
        raise PromptError(f"no click on slice {wanted}: expected one there, or another prompt")
    return Request(tuple(targets), frame.axis, _window(params))


def classes_request(
    params: Mapping[str, object], shape: tuple[int, int, int], categories: Sequence[str], guessed: Sequence[str] = ()
) -> Request:
    """Names only, on the slice given or else the middle one.

    ``label_prompt`` goes before ``text``, and ``text`` before ``label``; clicks are ignored: OHIF keeps sending the
    ones of an earlier call once an option was edited. With nothing at all each of ``guessed`` is tried.

    Raises:
        PromptError: an index without a label, text that is none, or no name where one is needed.
    """
    frame = _Frame(shape, _axis(params))
    index = _slice(params, frame, None)
    index = frame.num_slices // 2 if index is None else index
    names = _prompted_labels(params, categories)
    if not names:
        name = _text(params, "text") or _text(params, "label")
        names = [name] if name else []
    is_guess = not names
    if is_guess:
        names = list(guessed)
    if not names:
        raise PromptError("no prompt: expected a click, a box, a roi, a text or a label, got none")
    targets = tuple(Target(name, index, Prompt(text=name), is_guess) for name in names)
    return Request(targets, frame.axis, _window(params))


_Clicks = dict[str | None, list[tuple[Click, int]]]
"""By the label that a click names, None where it names none; each with 1 foreground or 0 background."""


def _clicks(params: Mapping[str, object], frame: _Frame) -> _Clicks:
    """All labels' clicks; ``points`` only where there is no ``foreground`` or ``background``, which are newer."""
    foreground, background = (_click_list(params, key, frame) for key in ("foreground", "background"))
    if not foreground and not background:
        return _labelled_clicks(params, frame) or _points(params, frame)
    negative = [(click, 0) for click in background]
    named = {key: clicks + negative for key, clicks in _labelled_clicks(params, frame).items()}
    if foreground or not named:
        named[None] = [(click, 1) for click in foreground] + negative
    return named


def _labelled_clicks(params: Mapping[str, object], frame: _Frame) -> _Clicks:
    keys = [k for k, v in params.items() if k not in _NOT_LABELS and isinstance(v, list) and v and _is_list(v[0])]
    return {key: [(click, 1) for click in _click_list(params, key, frame)] for key in keys}


def _points(params: Mapping[str, object], frame: _Frame) -> _Clicks:
    points = _click_list(params, "points", frame)
    if not points:
        return {}
    labels = params.get("point_labels") or [1] * len(points)
    if not isinstance(labels, list | tuple) or len(labels) != len(points):
        raise PromptError(f"point_labels: expected {len(points)} of them, 1 or 0, got {_shown(labels)}")
    kinds = [_number(label, "point_labels") for label in labels]
    if not set(kinds) <= {0.0, 1.0}:
        raise PromptError(f"point_labels: expected 1 (foreground) or 0 (background), got {_shown(labels)}")
    return {None: [(point, int(kind)) for point, kind in zip(points, kinds, strict=True)]}


def _click_list(params: Mapping[str, object], key: str, frame: _Frame) -> list[Click]:
    value = _present(params, key)
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise PromptError(f"{key}: expected a list of clicks [i, j, k], got {_shown(value)}")
    if len(value) > MAX_NUM_CLICKS:
        raise PromptError(f"{key}: too many clicks: got {len(value)}, at most {MAX_NUM_CLICKS}")
    return [frame.click(voxel, key) for voxel in value]


def _corners(clicks: _Clicks) -> tuple[_Clicks, _Region]:
    """Two-click box: earlier foreground clicks are those of an earlier box; background clicks stay clicks."""
    every = [entry for members in clicks.values() for entry in members]
    corners = [click for click, kind in every if kind == 1][-2:]
    if len(corners) < 2:
        raise PromptError(f'prompt "box": expected two foreground clicks on opposite corners, got {len(corners)}')
    (x0, y0, k0), (x1, y1, k1) = corners
    if k0 != k1:
        raise PromptError(f'prompt "box": expected both corners on one slice, got slices {k0} and {k1}')
    kept = [(click, kind) for click, kind in every if kind == 0 and click[2] == k0]
    return ({None: kept} if kept else {}), _Region((x0, y0, x1, y1), k0, k0)


def _box(params: Mapping[str, object], frame: _Frame) -> _Region | None:
    numbers = _numbers(params, "box", (4, 5), "x0, y0, x1, y1[, slice]")
    if numbers is None:
        return None
    first, last = 0, frame.num_slices - 1
    if len(numbers) == 5:
        first = last = frame.checked(_whole(numbers[4], "box"), "box")
    return _Region((numbers[0], numbers[1], numbers[2], numbers[3]), first, last)


def _roi(params: Mapping[str, object], frame: _Frame) -> _Region | None:
    """Slicer's region of interest: pairs per voxel axis, swapped wherever an axis runs against the patient's."""
    numbers = _numbers(params, "roi", (4, 6), "i0, i1, j0, j1, k0, k1")
    if numbers is None:
        return None
    pairs = [sorted(numbers[n : n + 2]) for n in range(0, len(numbers), 2)]
    if len(pairs) == 2:
        pairs.append([0.0, float(frame.shape[2] - 1)])
    (x0, x1), (y0, y1) = (pairs[axis] for axis in frame.in_plane)
    first, last = (round(v) for v in pairs[frame.axis])
    if last < 0 or first >= frame.num_slices:
        raise PromptError(f"roi: slices {first}..{last} are outside the image, expected 0..{frame.num_slices - 1}")
    return _Region((x0, y0, x1, y1), max(first, 0), min(last, frame.num_slices - 1))


def _slice(params: Mapping[str, object], frame: _Frame, region: _Region | None) -> int | None:
    value = _present(params, "slice")
    if value is None:
        return None
    index = _whole(_number(value, "slice"), "slice")
    # Slicer's 2D module sends the view's offset in millimetres when there is a roi; it cannot be an index there.
    if _present(params, "roi") is not None and region is not None and not region.first <= index <= region.last:
        return None
    return frame.checked(index, "slice")


def _prompts(
    clicks: Sequence[tuple[Click, int]], region: _Region | None, text: str | None, wanted: int | None, frame: _Frame
) -> list[tuple[int, Prompt]]:
    """One label's prompts by slice; a box alone, or a text alone, prompts the middle slice that it may mean."""
    positive = {click[2] for click, kind in clicks if kind == 1}
    slices = positive or {click[2] for click, _ in clicks}
    if wanted is not None:
        slices &= {wanted}
        if not slices and (region is not None or text is not None):
            slices = {wanted}
    elif region is not None and not any(region.first <= index <= region.last for index in slices):
        slices = slices | {(region.first + region.last + 1) // 2}
    elif not slices:
        slices = {frame.num_slices // 2}
    return [(index, _prompt(clicks, region, text, index)) for index in sorted(slices)]


def _prompt(clicks: Sequence[tuple[Click, int]], region: _Region | None, text: str | None, index: int) -> Prompt:
    here = [(click, kind) for click, kind in clicks if click[2] == index]
    is_boxed = region is not None and region.first <= index <= region.last
    return Prompt(
        point_coords=[(x, y) for (x, y, _), _ in here] or None,  # type: ignore[arg-type]
        point_labels=[kind for _, kind in here] or None,  # type: ignore[arg-type]
        box=region.box if is_boxed else None,  # type: ignore[arg-type, union-attr]
        text=text,
    )


def _name(params: Mapping[str, object], categories: Sequence[str]) -> str | None:
    """What the user calls the target: free choice, so nothing is checked."""
    label = _present(params, "label")
    if isinstance(label, str):
        return label
    indices = params.get("label_prompt")
    first = indices[0] if isinstance(indices, list) and indices else None
    is_known = isinstance(first, int) and 1 <= first <= len(categories)
    return categories[first - 1] if is_known else None  # type: ignore[operator]


def _prompted_labels(params: Mapping[str, object], categories: Sequence[str]) -> list[str]:
    value = _present(params, "label_prompt")
    if value is None:
        return []
    indices = [_whole(_number(v, "label_prompt"), "label_prompt") for v in (value if _is_list(value) else [value])]  # type: ignore[attr-defined]
    for index in indices:
        if not 1 <= index <= len(categories):
            raise PromptError(f"label_prompt: got {index}, expected the index of a label, 1..{len(categories)}")
    return [categories[index - 1] for index in dict.fromkeys(indices)]


def _text(params: Mapping[str, object], key: str) -> str | None:
    value = _present(params, key)
    if value is None:
        return None
    if not isinstance(value, str) or value.startswith(_EXPRESSION_MARKS) or not value.isprintable():
        raise PromptError(f"{key}: expected a name in plain words, got {_shown(value)}")
    return value


def _axis(params: Mapping[str, object]) -> int:
    value = _present(params, "axis")
    axis = 2 if value is None else _whole(_number(value, "axis"), "axis")
    if axis not in (0, 1, 2):
        raise PromptError(f"axis: got {axis}, expected 0, 1 or 2")
    return axis


def _window(params: Mapping[str, object]) -> tuple[float, float] | None:
    numbers = _numbers(params, "window", (2,), "centre, width")
    if numbers is None:
        return None
    if numbers[1] <= 0:
        raise PromptError(f"window: got width {numbers[1]:g}, expected more than 0")
    return numbers[0], numbers[1]


def _choice(params: Mapping[str, object], key: str, accepted: tuple[str, ...]) -> str:
    """A viewer's drop-down: the whole list arrives while the user chose nothing, and its first is the default."""
    value = _present(params, key)
    value = value[0] if isinstance(value, list) else value
    if value is None:
        return accepted[0]
    if value not in accepted:
        raise PromptError(f"{key}: got {_shown(value)}, expected one of {', '.join(accepted)}")
    return str(value)


def _numbers(params: Mapping[str, object], key: str, counts: tuple[int, ...], form: str) -> list[float] | None:
    value = _present(params, key)
    if value is None:
        return None
    values = value.split(",") if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or len(values) not in counts:
        raise PromptError(f"{key}: expected {form}, got {_shown(value)}")
    return [_number(v.strip() if isinstance(value, str) else v, key, is_typed=isinstance(value, str)) for v in values]


def _number(value: object, key: str, is_typed: bool = False) -> float:
    """A finite number. Text counts only where a person types it: slice, axis, and lists with commas."""
    if isinstance(value, str) and (is_typed or key in ("slice", "axis")):
        with contextlib.suppress(ValueError):  # then it is still a string, and no number
            value = float(value)
    try:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        is_number = False
    if not is_number:
        raise PromptError(f"{key}: expected finite numbers, got {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


def _whole(value: float, key: str) -> int:
    if value != round(value):
        raise PromptError(f"{key}: expected a whole number, got {value:g}")
    return round(value)


def _present(params: Mapping[str, object], key: str) -> object | None:
    """The value, or None where it is absent or empty."""
    value = params.get(key)
    value = value.strip() if isinstance(value, str) else value
    return None if value is None or value in ("", [], {}) else value


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
