"""A few prompted slices -> the whole target: both ways through a volume, along any axis.

Slices between two prompted ones (anchors) are prompted with what the anchors' masks become in between, the signed
distance to their outlines interpolated at that depth. Beyond the outermost anchors each slice is prompted with its
neighbour's mask, a click in its midst and the box that it should have there, until the target ends. Distances and
limits are in mm, so that thick slices may change more than thin ones. The published model segments single slices
("only 2D slices"); this is our addition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy import ndimage

from imis_net.errors import PromptError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import Segmenter
from imis_net.volume import Volume, Window

Embed = Callable[[np.ndarray], ImageEmbedding]
"""uint8 RGB [H, W, 3] -> its embedding, from a cache where there is one."""


MAX_LOGIT = 10.0
"""A network is as good as certain there."""
MARGIN_MM = 4.0
"""What is around a target begins at its outline and ends here, or after three pixels."""
RIM_PX = 2.5
"""What lies on either side of an outline: two pixels and their diagonals."""
TREND = 0.5
"""Share of the last slice's change that the next one is expected to repeat."""
SHRINKAGE = 0.5
"""How many mm per mm of depth the next box is smaller than expected, on each side: a target that is larger spills over
a box that is too small, whereas something is found to fill one that is too large."""
STANDING_OUT = 0.3
"""Contrast of a target that stands out, in its own standard deviations: below lies what is called a small effect."""
TAPERED = 0.9
"""A target tapers off where its mean radius is below this share of its widest anchor's."""
VALLEY = 0.2
"""Contrast that falls and rises again by this share of its highest is another object's, beyond the lowest."""


class Cancelled(Exception):
    """The caller asked to stop; nothing was kept."""


@dataclass(frozen=True)
class Limits:
    """Where the target ends, and how far a slice may differ from its neighbour.

    Attributes:
        min_iou: least predicted IoU of a slice, as a share of its anchor's; the first below it ends that direction.
        max_fading: how far the mean grey value may go from the anchor's (0) to what was around the anchor (1).
        min_contrast: least difference in grey across the outline, as a share of the highest so far, of a slice that has
            faded by half of what it may. Only of targets that stand out.
        max_slope: how many mm the target's mean radius may change per mm of depth, and how far its outline may lie
            outside its neighbour's; 1 is an outline at 45 degrees.
        max_regrowth: how many times the narrowest slice's mean radius a slice may have beyond anchors between which
            the target tapers off. One anchor alone does not say on which side the target is wider.
        max_distance_mm: how far from the outermost anchors to go at most.
    """

    min_iou: float = 0.5
    max_fading: float = 0.5
    min_contrast: float = 0.6
    max_slope: float = 1.5
    max_regrowth: float = 1.1
    max_distance_mm: float = math.inf


@dataclass(frozen=True, eq=False)
class Propagation:
    """The answer: ``mask`` bool [I, J, K], i fastest, and the predicted IoU of each slice that holds some of it."""

    mask: np.ndarray
    iou_predictions: Mapping[int, float]


@dataclass(eq=False)
class _Walk:
    """One call's state: what is asked, where it stands, what it has painted."""

    volume: Volume
    segmenter: Segmenter
    embed: Embed
    axis: int
    window: Window | None
    limits: Limits
    on_progress: Callable[[int, int], None]
    is_cancelled: Callable[[], bool]
    num_done: int = 0
    ious: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.volume.array.shape[:3], bool, order="F")
        self.slices = np.moveaxis(self.mask, self.axis, -1)
        self.spacing_mm = self.volume.pixel_spacing_mm(self.axis)
        self.depth_mm = float(self.volume.spacing_mm[self.axis])

    def predict(self, index: int, prompt: Prompt) -> Prediction:
        """
        Raises:
            Cancelled: the caller wants no more.
        """
        if self.is_cancelled():
            raise Cancelled
        image = self.volume.slice_rgb(index, self.axis, self.window)
        prediction = self.segmenter.predict(self.embed(image), prompt)
        self.num_done += 1
        self.on_progress(self.num_done, self.slices.shape[-1])
        return prediction

    def keep(self, index: int, prediction: Prediction) -> None:
        self.slices[..., index] = prediction.mask.T
        self.ious[index] = round(prediction.iou_prediction, 4)


def propagate(
    volume: Volume,
    anchors: Mapping[int, Prompt],
    segmenter: Segmenter,
    embed: Embed,
    axis: int = 2,
    window: Window | None = None,
    limits: Limits | None = None,
    on_progress: Callable[[int, int], None] = lambda num_done, num_slices: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Propagation:
    """One target from its prompts by slice of ``axis``.

    Raises:
        PromptError: no anchor, one outside the volume, or a prompt that does not fit its slice.
        Cancelled: ``is_cancelled`` said so between two slices.
    """
    _check(volume, anchors, axis)
    walk = _Walk(volume, segmenter, embed, axis, window, limits or Limits(), on_progress, is_cancelled)
    found = {index: walk.predict(index, anchors[index]) for index in sorted(anchors)}
    for index, prediction in found.items():
        walk.keep(index, prediction)
    for (first, before), (last, after) in pairwise(found.items()):
        _fill(walk, first, before.mask, last, after.mask)
    indices, predictions = list(found), list(found.values())
    _follow(walk, predictions[::-1], range(indices[0] - 1, -1, -1))
    _follow(walk, predictions, range(indices[-1] + 1, volume.num_slices(axis)))
    return Propagation(walk.mask, dict(sorted(walk.ious.items())))


def _check(volume: Volume, anchors: Mapping[int, Prompt], axis: int) -> None:
    if not anchors:
        raise PromptError("propagation: expected a prompt on at least one slice, got none")
    for index in anchors:
        if not 0 <= index < volume.num_slices(axis):
            raise PromptError(f"slice out of range: got {index}, expected 0..{volume.num_slices(axis) - 1}")


def _fill(walk: _Walk, first: int, before: np.ndarray, last: int, after: np.ndarray) -> None:
    """The slices between two anchors: an anchor without a mask says that the target ends before it."""
    if not before.any() or not after.any():
        return
    for index in range(first + 1, last):
        shape = between(before, after, (index - first) / (last - first), walk.spacing_mm)
        prediction = walk.predict(index, _prompt(shape, walk))
        nearest_mm = min(index - first, last - index) * walk.depth_mm
        kept = prediction.mask & (shape > -_reach_mm(walk, nearest_mm))
        if not kept.any():
            kept = shape > 0  # what the anchors agree on is more than nothing
        walk.keep(index, replace(prediction, mask=kept))


def _follow(walk: _Walk, anchors: Sequence[Prediction], indices: range) -> None:
    """Outwards from the last of the anchors, neighbour by neighbour, until the target ends."""
    anchor = anchors[-1]
    if not anchor.mask.any():
        return
    last, here = anchor, signed_distance_mm(anchor.mask, walk.spacing_mm)
    before = here
    appearance = _Appearance(walk, indices.start - indices.step, here)
    radii_mm = [_radius_mm(a.mask, walk.spacing_mm) for a in anchors]
    steps: list[tuple[int, Prediction]] = []
    for index in indices:
        if (len(steps) + 1) * walk.depth_mm > walk.limits.max_distance_mm:
            break
        prediction = walk.predict(index, _prompt_ahead(walk, before, here, last.low_res_mask))
        kept = prediction.mask & (here > -_reach_mm(walk, walk.depth_mm))
        radii_mm.append(_radius_mm(kept, walk.spacing_mm))
        if _has_ended(walk, radii_mm, prediction.iou_prediction / max(anchor.iou_prediction, 1e-6)):
            break
        if _grows_again(radii_mm, len(anchors), walk.limits.max_regrowth):
            break
        before, here = here, signed_distance_mm(kept, walk.spacing_mm)
        # A box always holds something: the target has ended where it looks more like what was around it.
        if not appearance.is_still(index, here):
            break
        last = replace(prediction, mask=kept)
        steps.append((index, last))
        lowest = appearance.valley()
        if lowest is not None:
            del steps[lowest - 1 :]  # the anchor has a contrast and is no step
            break
    for index, step in steps:
        walk.keep(index, step)


def _prompt_ahead(walk: _Walk, before: np.ndarray, here: np.ndarray, low_res_mask: np.ndarray) -> Prompt:
    """For the slice after two of these signed distances in mm, the latter's logits at hand."""
    expected = here + TREND * (here - before)
    box = _box(expected if (expected > 0).any() else here)
    inset = SHRINKAGE * walk.depth_mm / np.array(walk.spacing_mm[::-1])
    smaller = box + np.array([*inset, *-inset])
    row, column = np.unravel_index(here.argmax(), here.shape)
    return Prompt(
        point_coords=np.array([[column, row]]),
        point_labels=np.array([1]),
        box=smaller if (smaller[2:] - smaller[:2] >= 2).all() else box,
        low_res_mask=low_res_mask,
    )


def _has_ended(walk: _Walk, radii_mm: Sequence[float], iou: float) -> bool:
    """Whether the last slice has nothing left, is not believed in, or is of another size than the one before."""
    change_mm = abs(radii_mm[-1] - radii_mm[-2])
    return radii_mm[-1] == 0 or iou < walk.limits.min_iou or change_mm > _reach_mm(walk, walk.depth_mm)


def _grows_again(radii_mm: Sequence[float], num_anchors: int, max_regrowth: float) -> bool:
    """Whether the last slice is wider than those before it, beyond anchors between which the target tapers off."""
    narrowest, widest = min(radii_mm[num_anchors - 1 : -1]), max(radii_mm[:num_anchors])
    return num_anchors > 1 and narrowest < TAPERED * widest and radii_mm[-1] > max_regrowth * narrowest


class _Appearance:
    """How a target looks against what is around it, slice by slice from its anchor: in mean grey values."""

    def __init__(self, walk: _Walk, index: int, distance_mm: np.ndarray) -> None:
        self._walk = walk
        grey = self._grey(index)
        margin_mm = max(MARGIN_MM, 3 * max(walk.spacing_mm))
        self._inside, self._around = grey[distance_mm > 0].mean(), _mean(grey, -distance_mm, margin_mm)
        contrast = self._contrast(grey, distance_mm)
        self._sign = 1.0 if contrast >= 0 else -1.0
        self._contrasts = [abs(contrast)]
        self._stands_out = abs(contrast) > STANDING_OUT * grey[distance_mm > 0].std()

    def is_still(self, index: int, distance_mm: np.ndarray) -> bool:
        """Whether the next slice shows the target inside that outline."""
        grey, limits = self._grey(index), self._walk.limits
        gap = self._around - self._inside
        fading = (grey[distance_mm > 0].mean() - self._inside) / gap if gap else 0.0
        self._contrasts.append(self._sign * self._contrast(grey, distance_mm))
        is_flat = self._stands_out and self._contrasts[-1] < limits.min_contrast * max(self._contrasts)
        return bool(fading <= limits.max_fading / (2 if is_flat else 1))

    def valley(self) -> int | None:
        """How many slices from the anchor the contrast was lowest, once it has risen again; None before."""
        lowest = int(np.argmin(self._contrasts))
        before, after = max(self._contrasts[: lowest + 1]), self._contrasts[-1]
        is_valley = min(before, after) - self._contrasts[lowest] > VALLEY * before
        return lowest if self._stands_out and is_valley else None

    def _grey(self, index: int) -> np.ndarray:
        return self._walk.volume.slice_rgb(index, self._walk.axis, self._walk.window).mean(axis=2)

    def _contrast(self, grey: np.ndarray, distance_mm: np.ndarray) -> float:
        rim_mm = RIM_PX * max(self._walk.spacing_mm)
        return _mean(grey, distance_mm, rim_mm) - _mean(grey, -distance_mm, rim_mm)


def _mean(grey: np.ndarray, distance_mm: np.ndarray, up_to_mm: float) -> float:
    """Of the pixels at most that far on the positive side; 0 where there is none."""
    where = (distance_mm > 0) & (distance_mm < up_to_mm)
    return float(grey[where].mean()) if where.any() else 0.0


def _reach_mm(walk: _Walk, distance_mm: float) -> float:
    """How far an outline may move over that depth; a pixel is always allowed."""
    return walk.limits.max_slope * distance_mm + max(walk.spacing_mm)


def _radius_mm(mask: np.ndarray, spacing_mm: tuple[float, float]) -> float:
    """Of the disc of the same area."""
    return math.sqrt(np.count_nonzero(mask) * spacing_mm[0] * spacing_mm[1] / math.pi)


def _prompt(shape_mm: np.ndarray, walk: _Walk) -> Prompt:
    """The box around an expected shape, and the distances to its outline in pixels as if they were logits."""
    logits = (shape_mm / max(walk.spacing_mm)).clip(-MAX_LOGIT, MAX_LOGIT)
    return Prompt(box=_box(shape_mm), low_res_mask=walk.segmenter.frame.low_res(logits, -MAX_LOGIT))


def _box(shape_mm: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 around what is positive: half a pixel outwards, along the outer edges of its pixels."""
    rows, columns = (np.flatnonzero((shape_mm > 0).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]]) + np.array([-0.5, -0.5, 0.5, 0.5])


def signed_distance_mm(mask: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """[H, W] -> distance to the outline, positive inside; far outside everywhere where the mask is empty."""
    inside, outside = (ndimage.distance_transform_edt(m, sampling=spacing_mm) for m in (mask, ~mask))
    return inside - outside


def between(before: np.ndarray, after: np.ndarray, fraction: float, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Two masks [H, W] -> signed distances in mm of the shape at ``fraction`` of the way from one to the other.

    Each is moved to where the centre should be before they are mixed, or a target that runs obliquely would vanish
    half way.

    Source: shape-based interpolation, Raya and Udupa, IEEE TMI 1990.
    """
    centres = [np.array(ndimage.center_of_mass(mask)) for mask in (before, after)]
    centre = centres[0] + fraction * (centres[1] - centres[0])
    moved = [
        ndimage.shift(signed_distance_mm(mask, spacing_mm), centre - own, order=1, mode="nearest")
        for mask, own in zip((before, after), centres, strict=True)
    ]
    return (1 - fraction) * moved[0] + fraction * moved[1]
