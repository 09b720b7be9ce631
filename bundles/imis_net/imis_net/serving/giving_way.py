"""A program that leaves the processor to whoever serves users, until it is ready to serve them too.

    python giving_way.py PROGRAM [ARGUMENT ...]

On Linux, in ``SCHED_IDLE`` from its first step on. A lower niceness would not do: who wakes up waits for the slice of
who runs, some milliseconds at each step of a click from process to process.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

AT_MOST_S = 5.0
"""Where nothing is left over for so long, the program goes on as any other."""
POLL_S = 0.1
NO_LEVEL = os.sched_param(0)


def start(command: Sequence[str], at_most_s: float = AT_MOST_S) -> None:
    """Become that program. A process beside it sees to it that it does not give way for ever.

    The first thread that it makes gives way no longer than that takes to see. Triton's stub tells by it that it lives;
    one that is silent for a second on a busy machine is given up, and the whole server with it.
    """
    program = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:  # nobody's child: the program knows nothing of it
            _watch(program, time.monotonic() + at_most_s)
        os._exit(0)
    os.wait()
    os.sched_setscheduler(0, os.SCHED_IDLE, NO_LEVEL)
    os.execvp(command[0], list(command))


def command(program: Path) -> list[str]:
    """What to start instead of a program; its arguments follow."""
    return [sys.executable, "-IS", __file__, str(program)]


def ready() -> None:
    """This process gives way no longer, nor do the threads it has made; changes nothing where it was not started so."""
    if os.sched_getscheduler(0) == os.SCHED_IDLE:
        _as_usual(_threads(os.getpid()))


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


def _watch(program: int, until: float) -> None:
    has_helper = False
    with suppress(OSError):  # it has ended
        while time.monotonic() < until:
            helpers = [thread for thread in _threads(program) if thread != program]
            if helpers and not has_helper:
                _as_usual(helpers)
                has_helper = True
            time.sleep(POLL_S)
        _as_usual(_threads(program))


def _threads(program: int) -> list[int]:
    """The first of them last, so that what it makes meanwhile is no longer idle."""
    return sorted((int(name) for name in os.listdir(f"/proc/{program}/task")), reverse=True)


def _as_usual(threads: Iterable[int]) -> None:
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(thread, os.SCHED_OTHER, NO_LEVEL)


if __name__ == "__main__":
    start(sys.argv[1:])
