"""The ground truth decides: each rule, and what holds whatever comes in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imis_net.data_engine import quality_control as qc
from imis_net.data_engine.provenance import Action, InteractiveMask, Origin, Outcome, Rule, Step, Target
from imis_net.data_engine.regions import mask_iou
from imis_net.data_engine.settings import QualityRules, load_settings

RULES = QualityRules(min_box_overlap=0.95, min_part_fraction=0.01, max_hole_fraction=0.01, max_mask_iou=0.7)
SIDE = 40  # 1600 pixels: specks and holes are below 16


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def generated(mask: np.ndarray, score: float = 0.9) -> InteractiveMask:
    return InteractiveMask(mask, Origin.GENERATED, score)


def last(mask: InteractiveMask) -> Step:
    return mask.steps[-1]


def test_the_shipped_bounds_are_the_papers() -> None:
    """Breaks if a number of the published recipe is edited by accident."""
    rules, candidates = load_settings().quality_control, load_settings().candidates
    assert (rules.min_box_overlap, rules.max_mask_iou, rules.min_part_fraction) == (0.95, 0.7, 0.0005)
    assert (candidates.grid_side, candidates.min_predicted_iou, candidates.max_nms_iou) == (32, 0.85, 0.7)
    assert candidates.max_area_fraction == 0.8


def test_a_target_of_several_parts_replaces_what_was_generated() -> None:
    """Breaks if the generated mask stays although the boxes agree to the pixel."""
    both = rectangle(2, 2, 12, 12) | rectangle(20, 2, 30, 12)
    outcome = qc.control([generated(rectangle(2, 2, 30, 12))], [Target("lung", both)], RULES)
    mask = outcome.kept[0]
    assert (mask.mask == both).all()
    assert (mask.origin, mask.name, mask.score) == (Origin.GROUND_TRUTH, "lung", 1.0)
    assert mask.steps == (Step(Action.REPLACED, Rule.SEVERAL_PARTS, 2.0, 1.0),)
    assert mask.agreement == pytest.approx(200 / 280)


def test_a_generated_mask_stays_where_the_boxes_agree() -> None:
    """Breaks if the ground truth replaces a mask whose box overlaps by more than the bound."""
    truth = rectangle(5, 5, 35, 35)
    candidate = truth.copy()
    candidate[6:30, 6] = False
    outcome = qc.control([generated(candidate)], [Target("liver", truth)], RULES)
    mask = outcome.kept[0]
    assert (mask.mask == candidate).all()
    assert (mask.origin, mask.name, mask.score) == (Origin.GENERATED, "liver", 0.9)
    assert mask.steps == (Step(Action.KEPT, Rule.BOX_OVERLAP, 1.0, 0.95),)
    assert mask.agreement == pytest.approx(876 / 900)
    assert len(outcome.kept) == 1, "the mask that stays for a target does not stay a second time"
    assert not outcome.removed


def test_an_overlap_of_exactly_the_bound_is_replaced() -> None:
    """Breaks if "more than 95 %" becomes "at least"."""
    truth, candidate = rectangle(0, 0, 20, 40), rectangle(0, 0, 20, 38)
    mask = qc.decide(Target("liver", truth), generated(candidate), RULES)
    assert mask.steps == (Step(Action.REPLACED, Rule.BOX_OVERLAP, 0.95, 0.95),)
    assert (mask.mask == truth).all()
    assert mask.origin is Origin.GROUND_TRUTH
    assert mask.agreement == pytest.approx(0.95)


def test_a_target_that_nothing_touches_stands_by_itself() -> None:
    """Breaks if a target without a candidate is lost."""
    outcome = qc.control([generated(rectangle(0, 0, 10, 10))], [Target("liver", rectangle(20, 20, 30, 30))], RULES)
    truth, free = outcome.kept
    assert truth.steps == (Step(Action.REPLACED, Rule.NO_CANDIDATE, 0.0, 0.0),)
    assert (truth.origin, truth.agreement) == (Origin.GROUND_TRUTH, 0.0)
    assert free.steps == (Step(Action.KEPT, Rule.NO_GROUND_TRUTH, 0.0, 0.7),)
    assert (free.origin, free.name, free.agreement) == (Origin.GENERATED, None, None)


def test_the_best_match_shares_most() -> None:
    """Breaks if the first that touches is taken, or the later of equals."""
    truth = Target("liver", rectangle(0, 0, 20, 20))
    weak, good, equal = (generated(rectangle(0, 0, n, 20)) for n in (5, 18, 18))
    assert qc.best_match(truth, [weak, good, equal]) is good
    assert qc.best_match(truth, [generated(rectangle(30, 30, 35, 35))]) is None


def test_one_generated_mask_stands_for_one_target() -> None:
    """Breaks if a mask is named twice."""
    mask = rectangle(0, 0, 20, 20)
    outcome = qc.control([generated(mask)], [Target("liver", mask), Target("spleen", mask)], RULES)
    assert [m.name for m in outcome.kept] == ["liver"]
    assert [(m.name, last(m)) for m in outcome.removed] == [("spleen", Step(Action.REMOVED, Rule.DUPLICATE, 1.0, 0.7))]
    assert outcome.removed[0].origin is Origin.GROUND_TRUTH


def test_a_replaced_mask_may_match_another_target() -> None:
    """Breaks if a candidate that lost against the ground truth is used up."""
    small, large = rectangle(0, 0, 10, 20), rectangle(0, 0, 20, 20)
    outcome = qc.control([generated(large)], [Target("cyst", small), Target("kidney", large)], RULES)
    assert [(m.name, m.origin) for m in outcome.kept] == [
        ("cyst", Origin.GROUND_TRUTH),
        ("kidney", Origin.GENERATED),
    ]


def test_what_repeats_a_standing_mask_goes() -> None:
    """Breaks if a near copy of the ground truth stays as a second mask, or one of exactly the bound goes."""
    truth = rectangle(0, 0, 20, 40)
    at_bound, above = rectangle(0, 0, 20, 28), rectangle(0, 0, 20, 29)
    assert len(qc.control([generated(at_bound)], [Target("a", truth)], RULES).kept) == 2
    outcome = qc.control([generated(above)], [Target("a", truth)], RULES)
    assert [m.name for m in outcome.kept] == ["a"]
    assert last(outcome.removed[0]) == Step(Action.REMOVED, Rule.DUPLICATE, 0.725, 0.7)


def test_a_free_mask_tells_how_near_the_next_one_is() -> None:
    """Breaks if the number beside "kept" is the mask's overlap with itself or with one that is gone."""
    first, half = generated(rectangle(0, 0, 20, 20)), generated(rectangle(0, 0, 10, 20))
    gone = generated(rectangle(0, 0, 11, 20))
    outcome = qc.without_duplicates([first, half, gone], RULES)
    assert [last(m) for m in outcome.kept] == [Step(Action.KEPT, Rule.NO_GROUND_TRUTH, 0.5, 0.7)] * 2
    assert last(outcome.removed[0]).value == pytest.approx(10 / 11)


def test_holes_are_filled_and_specks_trimmed() -> None:
    """Breaks if either is skipped, done the other way round, or not written down."""
    mask = rectangle(5, 5, 25, 25)
    mask[10:13, 10:13] = False
    mask[30:33, 30:35] = True  # 15 pixels, one below the bound
    cleaned = qc.clean(generated(mask), RULES)
    assert (cleaned.mask == rectangle(5, 5, 25, 25)).all()
    assert cleaned.steps == (Step(Action.FILLED, Rule.HOLES, 9.0, 16.0), Step(Action.TRIMMED, Rule.SPECKS, 15.0, 16.0))


def test_holes_and_parts_of_the_bound_stay() -> None:
    """Breaks if a bound is widened by one pixel."""
    mask = rectangle(5, 5, 25, 25)
    mask[10:14, 10:14] = False
    mask[30:34, 30:34] = True
    cleaned = qc.clean(generated(mask), RULES)
    assert (cleaned.mask == mask).all()
    assert cleaned.steps == ()


def test_a_ring_is_whole_before_its_specks_are_counted() -> None:
    """Breaks if specks go first: a thin ring around a small hole is a part only once it is filled."""
    ring = rectangle(5, 5, 9, 9)
    ring[6:8, 6:8] = False
    assert qc.clean(generated(ring), RULES).mask.sum() == 16


def test_the_bounds_are_fractions_of_the_image() -> None:
    """Breaks if hole and speck bounds are mixed up."""
    mask = rectangle(5, 5, 25, 25)
    mask[10:13, 10:13] = False
    only_holes = replace(RULES, min_part_fraction=0.0)
    assert qc.clean(generated(mask), only_holes).steps == (Step(Action.FILLED, Rule.HOLES, 9.0, 16.0),)
    only_specks = replace(RULES, max_hole_fraction=0.0)
    assert qc.clean(generated(mask), only_specks).steps == ()


def test_a_mask_of_specks_is_removed_with_its_number() -> None:
    """Breaks if an empty mask goes on, or vanishes without a word."""
    outcome = qc.control([generated(rectangle(0, 0, 3, 5))], [], RULES)
    assert outcome.kept == ()
    assert [m.steps for m in outcome.removed] == [(Step(Action.REMOVED, Rule.SPECKS, 15.0, 16.0),)]


def test_the_ground_truth_is_never_cleaned() -> None:
    """Breaks if a small lesion that people drew is trimmed away as a speck."""
    speck = rectangle(3, 3, 4, 4)
    kept = qc.control([], [Target("lesion", speck)], RULES).kept
    assert (kept[0].mask == speck).all()


def test_removed_lists_specks_and_duplicates() -> None:
    """Breaks if either list is dropped on the way out."""
    mask = rectangle(0, 0, 20, 20)
    outcome = qc.control([generated(mask), generated(mask, 0.8), generated(rectangle(30, 30, 31, 31))], [], RULES)
    assert {last(m).rule for m in outcome.removed} == {Rule.SPECKS, Rule.DUPLICATE}
    assert [m.score for m in outcome.kept] == [0.9]


def scene(seed: int) -> tuple[list[InteractiveMask], list[Target]]:
    """Rectangles with bites and crumbs, many of them alike, as generated masks and as targets."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(6, 25)), int(rng.integers(6, 25)))
    shapes = [_blob(rng, shape) for _ in range(rng.integers(0, 8))]
    shapes += [s ^ (rng.random(shape) < 0.03) for s in shapes[: rng.integers(0, 5)]]
    candidates = sorted((generated(m, float(rng.random())) for m in shapes), key=lambda c: -c.score)
    truths = [_blob(rng, shape) for _ in range(rng.integers(0, 4))] + shapes[: rng.integers(0, 3)]
    return candidates, [Target(f"target {i}", t) for i, t in enumerate(truths) if t.any()]


def _blob(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 3)):
        (y0, y1), (x0, x1) = (sorted(rng.integers(0, n + 1, 2)) for n in shape)
        mask[y0:y1, x0:x1] = True
    return mask & (rng.random(shape) > 0.02)


def check(candidates: list[InteractiveMask], targets: list[Target], outcome: Outcome, rules: QualityRules) -> None:
    """What holds of any outcome; shared with the benchmark's many cases."""
    final = {True: (Action.KEPT, Action.REPLACED), False: (Action.REMOVED,)}
    shapes = {c.mask.shape for c in candidates} | {t.mask.shape for t in targets}
    assert {m.mask.shape for m in outcome.kept} <= shapes, "outside the image"
    assert all(m.mask.any() and m.mask.dtype == bool for m in outcome.kept), "empty"
    for i, mask in enumerate(outcome.kept):
        for other in outcome.kept[:i]:
            assert mask_iou(mask.mask, other.mask) <= rules.max_mask_iou + 1e-9, "duplicate"
    for stands, masks in ((True, outcome.kept), (False, outcome.removed)):
        for mask in masks:
            actions = [s.action for s in mask.steps]
            assert actions[-1] in final[stands], "no verdict"
            before = (Action.FILLED, Action.TRIMMED)
            if stands:
                assert all(a in before for a in actions[:-1]), "a verdict before the verdict"
            assert all(np.isfinite((s.value, s.threshold)).all() for s in mask.steps), "no number"
    names = [m.name for m in (*outcome.kept, *outcome.removed) if m.name]
    assert sorted(names) == sorted(t.name for t in targets), "a target lost or told twice"
    num_generated = sum(m.origin is Origin.GENERATED for m in (*outcome.kept, *outcome.removed))
    assert num_generated == len(candidates), "a candidate lost or told twice"
    named = [m.name is not None for m in outcome.kept]
    assert all(a >= b for a, b in pairwise(named)), "targets come first"


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_comes_in(seed: int) -> None:
    """Breaks if any mask is empty, repeated, unexplained or lost."""
    candidates, targets = scene(seed)
    check(candidates, targets, qc.control(candidates, targets, RULES), RULES)
