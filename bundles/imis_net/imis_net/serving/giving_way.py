"""Work that leaves the processor to whoever serves users meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

AT_MOST_S = 5.0
"""Where nothing is left over for so long, the work goes on as any other."""
NO_LEVEL = os.sched_param(0)


@contextmanager
def giving_way() -> Iterator[None]:
    """Run on what others leave of the processor, and then as usual, with the threads started meanwhile.

    A lower niceness would not do: who wakes up waits for the slice of who runs, some milliseconds at each of a click's
    steps from process to process. Changes nothing where the system would not let it back up, which takes CAP_SYS_NICE
    or a ``ulimit -e`` of 20.
    """
    if not comes_back():
        yield
        return
    limit = threading.Timer(AT_MOST_S, _as_usual)
    limit.start()
    os.sched_setscheduler(0, os.SCHED_IDLE, NO_LEVEL)  # this thread, and those that it makes
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
    """Whether the system lets it. Tried by a thread of its own, which can be left behind."""
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
