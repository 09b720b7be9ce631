"""lib.prefetch: neighbours nearest first, nothing while a click is answered, and everything in the end."""

from __future__ import annotations

import threading
import time

import numpy as np

from imis_net.images import Volume
from imis_net.interruption import Interrupted, _look
from lib.pictures import Place
from lib.prefetch import Prefetcher

VOLUME = Volume(np.zeros((4, 5, 6), np.int16), np.eye(4))


def _wait(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened for 5 s")


def test_neighbours_are_encoded_nearest_first_and_within_the_volume() -> None:
    """Breaks if the slice that a user scrolls to next comes last, or one outside the volume is asked for."""
    done: list[tuple[int, int]] = []
    prefetcher = Prefetcher(lambda place: done.append((place.axis, place.index)), reach=2)
    prefetcher.around(Place(VOLUME, 2, 1, None))
    _wait(lambda: len(done) == 3)
    assert done == [(2, 2), (2, 0), (2, 3)]


def test_nothing_is_encoded_ahead_during_a_click_and_it_goes_on_after() -> None:
    """Breaks if a click shares the machine with work that nobody waits for, or if that work is then forgotten."""
    done: list[int] = []
    prefetcher = Prefetcher(lambda place: done.append(place.index), reach=1)
    with prefetcher.click():
        prefetcher.around(Place(VOLUME, 0, 2, None))
        time.sleep(0.1)
        assert not done
    _wait(lambda: len(done) == 2)


def test_a_click_stops_a_run_between_two_layers() -> None:
    """Breaks if a click waits until the slice that is being encoded ahead is through."""
    started, through, stopped = threading.Event(), threading.Event(), threading.Event()

    def encode(place: Place) -> None:
        started.set()
        try:
            for _ in range(500):  # five seconds of layers
                _look(None, None)  # type: ignore[arg-type]
                time.sleep(0.01)
            through.set()
        except Interrupted:
            stopped.set()
            raise

    prefetcher = Prefetcher(encode, reach=1)
    prefetcher.around(Place(VOLUME, 2, 1, None))
    assert started.wait(5)
    with prefetcher.click():
        assert stopped.wait(2)
    assert not through.is_set()
