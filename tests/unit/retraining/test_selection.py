"""Which image is next."""

import numpy as np
import pytest

from imis_net.errors import ImisError
from imis_net.retraining.selection import STRATEGIES, ImageScore, choose

RNG = np.random.default_rng(0)


def at(angle: float, uncertainty: float = 0.5) -> ImageScore:
    return ImageScore(uncertainty, np.array([np.cos(angle), np.sin(angle)]))


def test_uncertain_takes_the_least_sure():
    """Breaks if the order is turned round."""
    assert choose("uncertain", {"a": at(0, 0.2), "b": at(0, 0.9), "c": at(0, 0.5)}, {}, RNG) == "b"


def test_diverse_does_not_ask_for_ten_near_equal_slices():
    """Breaks if what is near to a labelled image is asked for while something new is there."""
    near = {f"near{i}": at(0.01 * i, 0.99) for i in range(10)}
    assert choose("diverse", {**near, "far": at(1.2, 0.1)}, {"seen": at(0.0)}, RNG) == "far"


def test_hybrid_weighs_both():
    """Breaks if either novelty or uncertainty alone decides."""
    seen = {"seen": at(0.0)}
    candidates = {"new but sure": at(1.5, 0.01), "unsure but seen": at(0.01, 0.9), "both": at(1.2, 0.6)}
    assert choose("hybrid", candidates, seen, RNG) == "both"


def test_every_image_is_reached_at_random():
    """Breaks if chance is not uniform over the candidates."""
    drawn = {choose("random", dict.fromkeys("abc"), {}, np.random.default_rng(i)) for i in range(30)}
    assert drawn == set("abc")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unscored_images_can_still_be_chosen(strategy):
    """Breaks if a server that has just started has no answer."""
    assert choose(strategy, {"b": None, "a": None}, {}, RNG) in ("a", "b")


@pytest.mark.parametrize(("strategy", "ids"), [("random", {}), ("best", {"a": None})])
def test_no_choice_is_an_error(strategy, ids):
    """Breaks if nothing, or an unknown strategy, is answered with an image."""
    with pytest.raises(ImisError):
        choose(strategy, ids, {}, RNG)
