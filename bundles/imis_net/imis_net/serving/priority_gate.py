"""So many at a time, the urgent ones first."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PriorityGate:
    """A semaphore whose waiters are let in by urgency, then by arrival."""

    def __init__(self, width: int = 1) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[bool, int]] = []
        self._arrivals = itertools.count()
        self._num_free = width

    @contextmanager
    def turn(self, urgent: bool) -> Iterator[None]:
        me = (not urgent, next(self._arrivals))
        with self._changed:
            heapq.heappush(self._waiting, me)
            self._changed.wait_for(lambda: self._num_free > 0 and self._waiting[0] == me)
            heapq.heappop(self._waiting)
            self._num_free -= 1
            self._changed.notify_all()  # there may be room for the next one too
        try:
            yield
        finally:
            with self._changed:
                self._num_free += 1
                self._changed.notify_all()
