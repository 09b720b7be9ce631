"""Images that are there twice."""

from __future__ import annotations

import random

from imis_net.data_engine.duplicates import DuplicateFinder


def test_copies_are_found_among_patients() -> None:
    """Breaks if a re-encoded copy under another patient's name trains and tests at once."""
    finder = DuplicateFinder(2)
    assert finder.seen("a", "ff00", "1", "anna") is None
    assert finder.seen("b", "ff03", "2", "berta") == "a"
    assert finder.seen("c", "ff07", "3", "carla") is None, "three bits are more than two"


def test_neighbouring_slices_are_no_copies() -> None:
    """Breaks if a volume loses its slices because they look alike; an equal one goes."""
    finder = DuplicateFinder(2)
    assert finder.seen("a", "ff00", "1", "anna") is None
    assert finder.seen("b", "ff00", "2", "anna") is None
    assert finder.seen("c", "0f00", "2", "anna") == "b"


def test_no_pair_within_the_distance_is_missed() -> None:
    """Breaks if the pieces do not cover the whole hash: what they skip is never compared."""
    rng = random.Random(0)
    for _ in range(300):
        bits = rng.getrandbits(64)
        near = bits
        for position in rng.sample(range(64), 6):
            near ^= 1 << position
        finder = DuplicateFinder(6)
        finder.seen("a", f"{bits:016x}", "1", "anna")
        assert finder.seen("b", f"{near:016x}", "2", "berta") == "a"
