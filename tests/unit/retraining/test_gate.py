"""The gate: nothing that may be worse gets through."""

from dataclasses import replace

import numpy as np
import pytest

from imis_net.errors import DatasetError
from imis_net.evaluation.harness import Score
from imis_net.retraining.gate import NUM_WORST, judge


def score(case: int, dice: float, label: str = "liver", modality: str = "CT", strategy: str = "box") -> Score:
    return Score(f"case{case}", "s", modality, label, 0, strategy, 0, 100, dice, dice, dice, dice, 1.0)


def answers(num: int = 40, **facts: str) -> list[Score]:
    rng = np.random.default_rng(0)
    return [score(i, float(d), **facts) for i, d in enumerate(rng.uniform(0.5, 0.9, num))]


def moved(scores: list[Score], by: float, noise: float = 0.0, seed: int = 1) -> list[Score]:
    rng = np.random.default_rng(seed)
    return [replace(s, dice=s.dice + by + noise * rng.normal()) for s in scores]


def test_the_same_model_passes():
    """Breaks if equal answers are refused, so that nothing is ever published."""
    assert judge(answers(), answers()).passes


@pytest.mark.parametrize(("by", "passes"), [(0.05, True), (-0.005, True), (-0.02, False), (-0.2, False)])
def test_the_margin_is_one_point_of_dice(by, passes):
    """Breaks if a loss beyond the margin passes, or one within it does not."""
    assert judge(answers(), moved(answers(), by)).passes == passes


def test_gains_do_not_buy_losses_elsewhere():
    """Breaks if a category that got worse hides behind a mean that got better."""
    before = answers() + answers(20, label="spleen")
    after = moved(answers(), 0.1) + moved(answers(20, label="spleen"), -0.05)
    verdict = judge(before, after)
    assert np.mean([s.dice for s in after]) > np.mean([s.dice for s in before])
    assert not verdict.passes
    assert "label:spleen" in verdict.reason


@pytest.mark.parametrize("group", [{"modality": "MRI"}, {"strategy": "text"}])
def test_modalities_and_prompts_are_judged_too(group):
    """Breaks if only categories are looked at."""
    before = answers() + answers(20, **group)
    verdict = judge(before, moved(answers(), 0.1) + moved(answers(20, **group), -0.05))
    assert not verdict.passes


def test_little_evidence_is_not_enough():
    """Breaks if a mean of a few noisy targets is taken for the truth."""
    few = answers(4)
    assert not judge(few, moved(few, 0.0, noise=0.1)).passes


def test_nothing_to_compare_on_is_a_refusal():
    """Breaks if an empty ledger lets anything through."""
    verdict = judge([], [])
    assert not verdict.passes
    assert "reference" in verdict.reason


def test_answers_to_other_prompts_are_no_comparison():
    """Breaks if unpaired scores are subtracted from one another."""
    with pytest.raises(DatasetError, match="different prompts"):
        judge(answers(5), answers(6))


def test_random_worse_candidates_never_pass():
    """Breaks if chance lets a model through that is worse by twice the margin: 200 candidates, none may."""
    before = answers(30)
    assert not any(judge(before, moved(before, -0.03, 0.02, seed)).passes for seed in range(200))


def test_the_worst_cases_are_what_the_candidate_answers_worst():
    """Breaks if the report shows other targets than those to look at, or a mean that leaves a prompt out."""
    before = [score(i, 0.8, strategy=s) for i in range(20) for s in ("box", "click")]
    after = [replace(s, dice=0.4 if s.strategy == "click" else 0.6) if s.case == "case7" else s for s in before]
    verdict = judge(before, after)
    first, second, *_ = verdict.worst
    assert (first.case, first.label) == ("case7", "liver")
    assert (first.production, first.candidate) == pytest.approx((0.8, 0.5))
    assert second.candidate == pytest.approx(0.8)
    assert len(verdict.worst) == NUM_WORST
