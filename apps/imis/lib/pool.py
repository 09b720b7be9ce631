"""Where models, DICOM conversion and encoders run: a few threads, a short queue, and never the event loop.

A job may have a key: a newer job of the same key takes the place of an older one that has not started, since a viewer
that clicks again has no use for the earlier answer. A full queue is said at once rather than kept waiting for.
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class Superseded(Exception):
    """A newer job of the same key took this one's place before it started."""


class PoolFull(Exception):
    """As many jobs wait as may; ``retry_after_s`` is when a place should be free."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Job:
    run: Callable[[], Any]
    future: Future[Any]
    queued_s: float


class WorkerPool:
    """``num_workers`` threads that take jobs in the order they came, at most ``max_queued`` of them waiting."""

    def __init__(
        self, num_workers: int, max_queued: int, on_start: Callable[[float], None] = lambda waited_s: None
    ) -> None:
        self.max_queued = max_queued
        self._on_start = on_start
        self._queue: OrderedDict[Hashable, _Job] = OrderedDict()
        self._changed = threading.Condition()
        self._mean_s = 0.1
        self._num_running = 0
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return self._num_running

    def submit(self, job: Callable[[], T], key: Hashable | None = None) -> Future[T]:
        """The job's answer to be; a waiting job of the same key fails with ``Superseded``.

        Raises:
            PoolFull: too many jobs wait already.
        """
        context, future = contextvars.copy_context(), Future[T]()
        entry = _Job(lambda: context.run(job), future, time.perf_counter())
        with self._changed:
            older = self._queue.pop(key, None) if key is not None else None
            if older is None and len(self._queue) >= self.max_queued:
                raise PoolFull(self._retry_after_s())
            self._queue[future if key is None else key] = entry
            self._changed.notify()
        if older is not None and older.future.set_running_or_notify_cancel():
            older.future.set_exception(Superseded("a newer request for the same target took this one's place"))
        return future

    def close(self) -> None:
        """Let the running jobs end and start no other."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _retry_after_s(self) -> int:
        return max(1, math.ceil(len(self._queue) * self._mean_s / len(self._threads)))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
                if self._is_closed:
                    return
                _, entry = self._queue.popitem(last=False)
                self._num_running += 1
            try:
                self._run(entry)
            finally:
                with self._changed:
                    self._num_running -= 1

    def _run(self, entry: _Job) -> None:
        if not entry.future.set_running_or_notify_cancel():
            return  # whoever asked has gone
        start = time.perf_counter()
        self._on_start(start - entry.queued_s)
        try:
            answer = entry.run()
        except BaseException as error:
            entry.future.set_exception(error)
        else:
            entry.future.set_result(answer)
        self._mean_s += 0.1 * (time.perf_counter() - start - self._mean_s)
