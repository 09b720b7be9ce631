"""Loading beside those that serve: on what they leave, and then as usual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imis_net.serving.giving_way import COMMAND, comes_back

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "imis_net"


def run(program: str) -> None:
    """In a process started to give way."""
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    subprocess.run([*COMMAND.split(), sys.executable, "-c", program], env=environment, check=True)


@pytest.mark.skipif(not comes_back(), reason="this system lets nobody back up")
def test_what_is_started_meanwhile_ends_up_as_usual() -> None:
    """Breaks if a decoder's own threads keep the lowest priority once it serves."""
    program = """
import os, threading
from imis_net.serving.giving_way import at_most_until_done
policies = lambda: {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
worker = threading.Thread(target=threading.Event().wait, daemon=True)
with at_most_until_done():
    worker.start()
    assert policies() == {os.SCHED_IDLE}
assert policies() == {os.SCHED_OTHER}
"""
    run(program)


@pytest.mark.skipif(not comes_back(), reason="this system lets nobody back up")
def test_it_does_not_give_way_for_ever() -> None:
    """Breaks if a version never loads on a machine whose cores are always taken."""
    program = """
import os, threading
from imis_net.serving import giving_way
giving_way.AT_MOST_S = 0.01
with giving_way.at_most_until_done():
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.join()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
"""
    run(program)
