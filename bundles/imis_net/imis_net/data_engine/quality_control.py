"""The ground truth decides which generated masks stand. Pure functions, one rule each.

For each target, in the data set's order:

    several parts                                  -> the ground truth replaces what was generated
    one part, nothing generated touches it         -> the ground truth stands
    one part, boxes overlap by more than the bound -> the best generated mask stays
    one part, otherwise                            -> the ground truth replaces it

The best generated mask of a target is the one of the greatest mask IoU that no earlier target took. What stands for a
target comes first; of the rest, best predicted first, each mask stays that does not repeat one that stands.

Source: IMed-361M (arXiv 2411.12814), section 3. "Overlap" of boxes is taken as their IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from imis_net.data_engine.provenance import Action, InteractiveMask, Origin, Outcome, Rule, Target
from imis_net.data_engine.regions import (
    bounding_box,
    box_iou,
    count_parts,
    mask_iou,
    pairwise_mask_iou,
    suppressed_by,
    without_holes,
    without_specks,
)
from imis_net.data_engine.settings import QualityRules


def control(candidates: Sequence[InteractiveMask], targets: Sequence[Target], rules: QualityRules) -> Outcome:
    """Candidates (best predicted first) and targets of one image -> masks that stand, targets first."""
    cleaned = [clean(candidate, rules) for candidate in candidates]
    usable = [c for c in cleaned if c.mask.any()]
    removed = [c for c in cleaned if not c.mask.any()]
    standing: list[InteractiveMask] = []
    for target in targets:
        match = best_match(target, usable)
        decided = decide(target, match, rules)
        standing.append(decided)
        if match is not None and decided.origin is Origin.GENERATED:
            usable = [c for c in usable if c is not match]
    outcome = without_duplicates([*standing, *usable], rules)
    return Outcome(outcome.kept, (*removed, *outcome.removed))


def clean(candidate: InteractiveMask, rules: QualityRules) -> InteractiveMask:
    """Holes filled, then specks trimmed; a mask of nothing but specks comes back empty, its last step REMOVED."""
    max_hole_px = rules.max_hole_fraction * candidate.mask.size
    min_part_px = rules.min_part_fraction * candidate.mask.size
    mask, num_filled = without_holes(candidate.mask, max_hole_px)
    mask, num_trimmed = without_specks(mask, min_part_px)
    cleaned = replace(candidate, mask=mask)
    if not mask.any():
        return cleaned.after(Action.REMOVED, Rule.SPECKS, num_trimmed, min_part_px)
    if num_filled:
        cleaned = cleaned.after(Action.FILLED, Rule.HOLES, num_filled, max_hole_px)
    if num_trimmed:
        cleaned = cleaned.after(Action.TRIMMED, Rule.SPECKS, num_trimmed, min_part_px)
    return cleaned


def best_match(target: Target, candidates: Sequence[InteractiveMask]) -> InteractiveMask | None:
    """The candidate that shares most with a target, the earlier one of equals; None where none touches it."""
    best, best_iou = None, 0.0
    for candidate in candidates:
        iou = mask_iou(candidate.mask, target.mask)
        if iou > best_iou:
            best, best_iou = candidate, iou
    return best


def decide(target: Target, match: InteractiveMask | None, rules: QualityRules) -> InteractiveMask:
    """The mask that stands for a target: the match, or the ground truth."""
    agreement = mask_iou(match.mask, target.mask) if match is not None else 0.0
    truth = InteractiveMask(target.mask, Origin.GROUND_TRUTH, 1.0, target.name, (), agreement)
    num_parts = count_parts(target.mask)
    if num_parts > 1:
        return truth.after(Action.REPLACED, Rule.SEVERAL_PARTS, num_parts, 1)
    if match is None:
        return truth.after(Action.REPLACED, Rule.NO_CANDIDATE, 0, 0)
    overlap = box_iou(bounding_box(match.mask), bounding_box(target.mask))
    if overlap > rules.min_box_overlap:
        named = replace(match, name=target.name, agreement=agreement)
        return named.after(Action.KEPT, Rule.BOX_OVERLAP, overlap, rules.min_box_overlap)
    return truth.after(Action.REPLACED, Rule.BOX_OVERLAP, overlap, rules.min_box_overlap)


def without_duplicates(ordered: Sequence[InteractiveMask], rules: QualityRules) -> Outcome:
    """Masks in order of precedence; of two that share too much the later goes. Each gets its last step."""
    ious = pairwise_mask_iou([m.mask for m in ordered])
    by = suppressed_by(ious, rules.max_mask_iou)
    stands = by < 0
    kept, removed = [], []
    for i, mask in enumerate(ordered):
        if not stands[i]:
            removed.append(mask.after(Action.REMOVED, Rule.DUPLICATE, ious[i, by[i]], rules.max_mask_iou))
        elif mask.name is not None:
            kept.append(mask)
        else:
            others = stands & (np.arange(len(ordered)) != i)
            nearest = ious[i, others].max(initial=0.0)
            kept.append(mask.after(Action.KEPT, Rule.NO_GROUND_TRUTH, nearest, rules.max_mask_iou))
    return Outcome(tuple(kept), tuple(removed))
