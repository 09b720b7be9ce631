"""Loading beside those that serve: on what they leave, and then as usual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imis_net.serving.giving_way import comes_back

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "imis_net"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(BUNDLE)}
pytestmark = pytest.mark.skipif(not comes_back(), reason="this system lets nobody back up")
SETUP = """
import os, threading, time
from imis_net.serving import giving_way
policy = os.sched_getscheduler
threads = lambda: {int(name) for name in os.listdir("/proc/self/task")} - {os.getpid()}
new_thread = lambda: threading.Thread(target=threading.Event().wait, daemon=True).start()

def is_soon(condition):
    give_up = time.monotonic() + 30
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.01)
    return condition()
"""


def run(program: str, at_most_s: float = 60) -> None:
    """As a program that gives way."""
    start = "import sys; from imis_net.serving.giving_way import start; start(sys.argv[2:], float(sys.argv[1]))"
    command = [sys.executable, "-c", start, str(at_most_s), sys.executable, "-c", SETUP + program]
    subprocess.run(command, env=ENVIRONMENT, check=True)


def test_what_is_started_meanwhile_ends_up_as_usual() -> None:
    """Breaks if a decoder's own threads keep the lowest priority once it serves."""
    run("""
new_thread()
assert policy(0) == os.SCHED_IDLE
giving_way.ready()
assert {policy(thread) for thread in [0, *threads()]} == {os.SCHED_OTHER}
""")


def test_what_tells_that_it_lives_does_not_give_way() -> None:
    """Breaks if Triton gives up a version, and itself with it, whose process cannot tell on a busy machine that it
    lives; or if threads that only help to load are lifted too."""
    run("""
new_thread()
assert is_soon(lambda: {policy(thread) for thread in threads()} == {os.SCHED_OTHER})
first = threads()
new_thread()
time.sleep(3 * giving_way.POLL_S)
assert {policy(thread) for thread in threads() - first} == {os.SCHED_IDLE} == {policy(0)}
""")


def test_it_does_not_give_way_for_ever() -> None:
    """Breaks if a version never loads on a machine whose cores are always taken."""
    run("assert is_soon(lambda: policy(0) == os.SCHED_OTHER)", at_most_s=0.3)


def test_a_program_that_was_not_started_so_is_left_alone() -> None:
    """Breaks if whoever set a priority of his own loses it."""
    batch = """
os.sched_setscheduler(0, os.SCHED_BATCH, giving_way.NO_LEVEL)
giving_way.ready()
assert policy(0) == os.SCHED_BATCH
"""
    subprocess.run([sys.executable, "-c", SETUP + batch], env=ENVIRONMENT, check=True)
