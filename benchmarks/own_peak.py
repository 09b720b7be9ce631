"""Memory that this program had at most."""

from __future__ import annotations

from pathlib import Path


def own_peak_mb() -> float:
    """Of this program alone: what ``getrusage`` tells begins with the peak of the process that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
