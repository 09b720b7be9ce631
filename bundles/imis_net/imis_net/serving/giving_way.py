"""Work that leaves the processor to whoever serves users meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

AT_MOST_S = 5.0
"""Where nothing is left over for so long, the work goes on as any other."""
NO_LEVEL = os.sched_param(0)


COMMAND = "chrt --idle 0"
"""Before a program's name, for a process that gives way from its first step on.

A lower niceness would not do: who wakes up waits for the slice of who runs, some milliseconds at each step of a click
from process to process.
"""


@contextmanager
def at_most_until_done() -> Iterator[None]:
    """End it, where this process was started so, with the threads it has made; changes nothing elsewhere."""
    if os.sched_getscheduler(0) != os.SCHED_IDLE:
        yield
        return
    limit = threading.Timer(AT_MOST_S, _as_usual)
    limit.start()
    try:
        yield
    finally:
        limit.cancel()
        _as_usual()


def _as_usual() -> None:
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, NO_LEVEL)


def comes_back() -> bool:
    """Whether the system lets a process back up, which takes CAP_SYS_NICE or a ``ulimit -e`` of 20.

    Tried by a thread of its own, which can be left behind.
    """
    came_back = False

    def attempt() -> None:
        nonlocal came_back
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_IDLE, NO_LEVEL)
            os.sched_setscheduler(0, os.SCHED_OTHER, NO_LEVEL)
            came_back = True

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return came_back
