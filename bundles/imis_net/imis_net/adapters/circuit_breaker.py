"""Stop asking what does not answer; ask again after a while, one caller at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class CircuitBreaker:
    """Thread safe. Closed while calls succeed, open after so many failures in a row, then one probe at a time."""

    def __init__(self, max_failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_failures = max_failures
        self.cooldown_s = cooldown_s
        self._clock = clock
        self._lock = threading.Lock()
        self._num_failures = 0
        self._retry_at = 0.0
        self.reason = ""

    @property
    def is_open(self) -> bool:
        return self._num_failures >= self.max_failures

    def allows(self) -> bool:
        """Whether to try now. Where it is open, a yes makes this caller the probe of the next ``cooldown_s``."""
        with self._lock:
            if not self.is_open:
                return True
            if self._clock() < self._retry_at:
                return False
            self._retry_at = self._clock() + self.cooldown_s
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._num_failures, self.reason = 0, ""

    def failed(self, reason: str) -> None:
        with self._lock:
            self._num_failures += 1
            self.reason = reason
            self._retry_at = self._clock() + self.cooldown_s
