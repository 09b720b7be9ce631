"""lib.pool: bounded, first come first served, the newest of a key, and work that overlaps."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from lib.pool import PoolFull, Superseded, WorkerPool


@pytest.fixture
def busy() -> Iterator[tuple[WorkerPool, threading.Event]]:
    """A pool whose one worker is held until the event is set."""
    pool, release, started = WorkerPool(1, max_queued=3), threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        release.wait(10)

    pool.submit(hold)
    assert started.wait(5)
    yield pool, release
    release.set()
    pool.close()


def test_work_of_different_users_overlaps() -> None:
    """Breaks if jobs run one after another: each of these waits until all four have started."""
    pool, together = WorkerPool(4, max_queued=8), threading.Barrier(4)
    futures = [pool.submit(lambda: together.wait(5)) for _ in range(4)]
    assert sorted(f.result(10) for f in futures) == [0, 1, 2, 3]
    pool.close()


def test_a_newer_job_takes_the_place_of_an_older_one(busy: tuple[WorkerPool, threading.Event]) -> None:
    """Breaks if an outdated click is still computed, or if another user's is dropped."""
    pool, release = busy
    older = pool.submit(lambda: "older", key=("ann", "ct", "liver"))
    other = pool.submit(lambda: "other", key=("bob", "ct", "liver"))
    newer = pool.submit(lambda: "newer", key=("ann", "ct", "liver"))
    with pytest.raises(Superseded, match="newer request"):
        older.result(5)
    release.set()
    assert (other.result(5), newer.result(5)) == ("other", "newer")


def test_a_started_job_is_not_superseded() -> None:
    """Breaks if an answer that is being computed is thrown away."""
    pool, started, release = WorkerPool(1, max_queued=3), threading.Event(), threading.Event()

    def first() -> str:
        started.set()
        release.wait(5)
        return "first"

    running = pool.submit(first, key="k")
    assert started.wait(5)
    second = pool.submit(lambda: "second", key="k")
    release.set()
    assert (running.result(5), second.result(5)) == ("first", "second")
    pool.close()


def test_a_full_queue_says_when_to_come_back(busy: tuple[WorkerPool, threading.Event]) -> None:
    """Breaks if the queue grows without end; a newer click of a waiting key still finds its place."""
    pool, _ = busy
    for key in "abc":
        pool.submit(lambda: None, key=key)
    with pytest.raises(PoolFull) as full:
        pool.submit(lambda: None, key="d")
    assert full.value.retry_after_s >= 1
    pool.submit(lambda: None, key="c")
    assert pool.num_queued == 3


def test_errors_reach_whoever_asked_and_the_worker_lives_on() -> None:
    """Breaks if a failing job kills its thread."""
    pool = WorkerPool(1, max_queued=3)
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(5)
    assert pool.submit(lambda: 1).result(5) == 1
    pool.close()


def test_a_cancelled_job_is_not_run(busy: tuple[WorkerPool, threading.Event]) -> None:
    """Breaks if work goes on for a viewer that has closed its connection."""
    pool, release = busy
    ran: list[int] = []
    future = pool.submit(lambda: ran.append(1))
    assert future.cancel()
    release.set()
    pool.submit(lambda: None).result(5)
    with pytest.raises(CancelledError):
        future.result(0)
    assert not ran


def test_the_wait_is_told_and_the_context_comes_along() -> None:
    """Breaks if the queue's share of a click is not measured, or log lines of a job lose their request."""
    waits: list[float] = []
    pool, name = WorkerPool(1, max_queued=3, on_start=waits.append), contextvars.ContextVar("name", default="")
    name.set("request 7")
    first = pool.submit(lambda: time.sleep(0.05))
    second = pool.submit(name.get)
    first.result(5)
    assert second.result(5) == "request 7"
    assert waits[1] >= 0.04
    pool.close()
