"""Masks that a segmenter proposes when it is asked everywhere: a grid of single clicks, then filters.

    predicted IoU above the bound -> not most of the image -> no better one with nearly the same box

Segment Anything's automatic generator suppresses by the boxes' IoU, and so the paper's masks were; ``nms_by: mask``
compares the masks themselves. Source: Segment Anything, appendix B; IMed-361M (arXiv 2411.12814), section 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from imis_net.data_engine.provenance import Action, InteractiveMask, Origin, Outcome, Rule
from imis_net.data_engine.regions import bounding_box, pairwise_box_iou, pairwise_mask_iou, suppressed_by
from imis_net.data_engine.semantics import draw_names
from imis_net.data_engine.settings import CandidateSettings
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import Segmenter, TorchSegmenter


@dataclass(frozen=True, eq=False)
class Proposals:
    """What is left of a grid of clicks.

    Attributes:
        candidates: best predicted first.
        num_removed: how many masks each rule took out.
        drawn: what the model draws for each name it knows, bool [H, W]; empty where it knows none.
    """

    candidates: tuple[InteractiveMask, ...]
    num_removed: dict[str, int]
    drawn: dict[str, np.ndarray] = field(default_factory=dict)


def propose(segmenter: Segmenter, image: np.ndarray, settings: CandidateSettings) -> Proposals:
    """Candidates of one image, uint8 RGB [H, W, 3].

    Raises:
        ImageError: not such an image.
    """
    embedding = segmenter.encode_image(image)
    confident: list[InteractiveMask] = []
    num_removed: Counter[str] = Counter()
    for prompts in _batches(grid_clicks(image.shape[0], image.shape[1], settings.grid_side), settings.batch_size):
        # Filtered batch by batch: a thousand full-size masks at once would be most of the memory.
        answers = _answers(segmenter, embedding, prompts, settings.min_predicted_iou)
        outcome = filter_masks(map(as_mask, answers), settings)
        confident.extend(outcome.kept)
        num_removed.update(_last_rule(m) for m in outcome.removed)
        num_removed[Rule.PREDICTED_IOU.value] += len(prompts) - len(answers)
    outcome = suppress(confident, settings)
    num_removed.update(_last_rule(m) for m in outcome.removed)
    drawn = draw_names(segmenter, embedding, segmenter.known_texts or ())
    return Proposals(outcome.kept, {rule: n for rule, n in sorted(num_removed.items()) if n}, drawn)


def _answers(
    segmenter: Segmenter, embedding: ImageEmbedding, prompts: Sequence[Prompt], min_iou: float
) -> list[Prediction]:
    """A segmenter's masks; one that rates them before it draws them gives those above the bound alone."""
    if isinstance(segmenter, TorchSegmenter):
        return list(segmenter.predict_confident(embedding, prompts, min_iou).values())
    return segmenter.predict_batch(embedding, prompts)


def grid_clicks(height_px: int, width_px: int, grid_side: int) -> list[Prompt]:
    """One foreground click in the middle of each of ``grid_side`` x ``grid_side`` cells, row by row."""
    steps = (np.arange(grid_side) + 0.5) / grid_side
    return [
        Prompt(point_coords=np.array([[x * width_px - 0.5, y * height_px - 0.5]], np.float32), point_labels=np.ones(1))
        for y in steps
        for x in steps
    ]


def as_mask(prediction: Prediction) -> InteractiveMask:
    return InteractiveMask(prediction.mask, Origin.GENERATED, prediction.iou_prediction)


def filter_masks(masks: Iterator[InteractiveMask] | Sequence[InteractiveMask], settings: CandidateSettings) -> Outcome:
    """Without the doubtful, the empty and the background; each of these tells why."""
    kept, removed = [], []
    for mask in masks:
        fraction = np.count_nonzero(mask.mask) / mask.mask.size
        if not mask.score > settings.min_predicted_iou:
            removed.append(mask.after(Action.REMOVED, Rule.PREDICTED_IOU, mask.score, settings.min_predicted_iou))
        elif fraction == 0:
            removed.append(mask.after(Action.REMOVED, Rule.SPECKS, 0, 0))
        elif fraction > settings.max_area_fraction:
            removed.append(mask.after(Action.REMOVED, Rule.BACKGROUND, fraction, settings.max_area_fraction))
        else:
            kept.append(mask)
    return Outcome(tuple(kept), tuple(removed))


def suppress(masks: Sequence[InteractiveMask], settings: CandidateSettings) -> Outcome:
    """Non-maximum suppression, best predicted first and the earlier click of equals."""
    ordered = sorted(masks, key=lambda m: -m.score)
    if settings.nms_by == "box":
        ious = pairwise_box_iou([bounding_box(m.mask) for m in ordered])
    else:
        ious = pairwise_mask_iou([m.mask for m in ordered])
    by = suppressed_by(ious, settings.max_nms_iou)
    kept = [m for m, survivor in zip(ordered, by, strict=True) if survivor < 0]
    removed = [
        m.after(Action.REMOVED, Rule.NMS, ious[i, by[i]], settings.max_nms_iou)
        for i, m in enumerate(ordered)
        if by[i] >= 0
    ]
    return Outcome(tuple(kept), tuple(removed))


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _last_rule(mask: InteractiveMask) -> str:
    return mask.steps[-1].rule.value
