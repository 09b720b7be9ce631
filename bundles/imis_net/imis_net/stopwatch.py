"""Milliseconds by stage, for the one line that each click leaves behind."""

from __future__ import annotations

import time


class Stopwatch:
    """Each lap counts from the one before; laps of one name add up."""

    def __init__(self) -> None:
        self._stages_ms: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._stages_ms[stage] = self._stages_ms.get(stage, 0.0) + 1000 * (now - self._last)
        self._last = now

    def report(self) -> dict[str, float]:
        """Milliseconds of each stage and since the start as ``total``."""
        total = 1000 * (time.perf_counter() - self._start)
        return {stage: round(ms, 1) for stage, ms in (self._stages_ms | {"total": total}).items()}
