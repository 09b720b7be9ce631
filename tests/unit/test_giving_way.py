"""Loading beside those that serve: on what they leave, and then as usual."""

from __future__ import annotations

import os
import threading

import pytest

from imis_net.serving import giving_way as module
from imis_net.serving.giving_way import comes_back, giving_way


def policies() -> set[int]:
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.mark.skipif(not comes_back(), reason="this system lets nobody back up")
def test_what_is_started_meanwhile_ends_up_as_usual() -> None:
    """Breaks if a decoder's own threads keep the lowest priority once it serves."""
    stop = threading.Event()
    worker = threading.Thread(target=stop.wait)
    with giving_way():
        worker.start()
        assert os.sched_getscheduler(0) == os.SCHED_IDLE
        assert os.sched_getscheduler(worker.native_id or 0) == os.SCHED_IDLE
    assert policies() == {os.SCHED_OTHER}
    stop.set()
    worker.join()


@pytest.mark.skipif(not comes_back(), reason="this system lets nobody back up")
def test_it_does_not_give_way_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a version never loads on a machine whose cores are always taken."""
    monkeypatch.setattr(module, "AT_MOST_S", 0.01)
    with giving_way():
        for timer in threading.enumerate():
            if isinstance(timer, threading.Timer):
                timer.join()
        assert policies() == {os.SCHED_OTHER}


def test_nothing_goes_down_that_cannot_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if an ordinary user's server is left at the lowest priority."""
    monkeypatch.setattr(module, "comes_back", lambda: False)
    with giving_way():
        assert policies() == {os.SCHED_OTHER}
