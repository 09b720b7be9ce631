"""A mask and how it came to be: every rule that touched it, with the number it met and the threshold it was held to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np


class Action(str, Enum):
    """What a rule did to a mask. The last step of a mask is KEPT, REPLACED or REMOVED."""

    KEPT = "kept"
    REPLACED = "replaced"
    FILLED = "filled"
    TRIMMED = "trimmed"
    REMOVED = "removed"


class Rule(str, Enum):
    """Why. The step's ``value`` is what is said here."""

    PREDICTED_IOU = "predicted_iou"  # the segmenter's own estimate
    BACKGROUND = "background"  # fraction of the image
    NMS = "nms"  # IoU with a better candidate
    HOLES = "holes"  # pixels filled
    SPECKS = "specks"  # pixels trimmed, or all of them
    SEVERAL_PARTS = "several_parts"  # parts of the ground truth
    BOX_OVERLAP = "box_overlap"  # IoU of the boxes
    NO_CANDIDATE = "no_candidate"  # 0: nothing generated touches the ground truth
    DUPLICATE = "duplicate"  # IoU with a mask that stands
    NO_GROUND_TRUTH = "no_ground_truth"  # IoU with the nearest mask that stands


@dataclass(frozen=True)
class Step:
    """``value`` is in the rule's own unit; ``threshold`` is what it was compared with, in the same unit."""

    action: Action
    rule: Rule
    value: float
    threshold: float


class Origin(str, Enum):
    """Whose pixels."""

    GENERATED = "generated"
    GROUND_TRUTH = "ground_truth"


@dataclass(frozen=True, eq=False)
class Target:
    """A region that people drew: its name (a class of the data set) and mask, bool [H, W], not empty."""

    name: str
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class InteractiveMask:
    """One mask on its way through the rules.

    Attributes:
        mask: bool [H, W].
        origin: whose pixels these are.
        score: the segmenter's predicted IoU; 1 for ground truth.
        name: the target it stands for, or None where nobody named it.
        steps: its provenance, in order.
        agreement: IoU of the best generated mask with the target it stands for; None where it stands for none.
    """

    mask: np.ndarray
    origin: Origin
    score: float
    name: str | None = None
    steps: tuple[Step, ...] = ()
    agreement: float | None = None

    def after(self, action: Action, rule: Rule, value: float, threshold: float) -> InteractiveMask:
        return replace(self, steps=(*self.steps, Step(action, rule, float(value), float(threshold))))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What stands and what was taken out, each with its provenance."""

    kept: tuple[InteractiveMask, ...]
    removed: tuple[InteractiveMask, ...]
