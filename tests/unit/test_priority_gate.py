"""The priority gate: a prefetch never makes a click wait for more than the run that is under way."""

from __future__ import annotations

import threading
import time

import pytest

from imis_net.serving.priority_gate import PriorityGate


def enter(gate: PriorityGate, urgent: bool, name: str, order: list[str]) -> threading.Thread:
    def run() -> None:
        with gate.turn(urgent):
            order.append(name)

    thread = threading.Thread(target=run)
    num_waiting = len(gate._waiting)  # before it may have joined them
    thread.start()
    deadline = time.monotonic() + 5
    while thread.is_alive() and len(gate._waiting) == num_waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    return thread


def test_urgent_ones_go_first_then_by_arrival() -> None:
    """Breaks if prefetched images are encoded before the one that a user has clicked on."""
    gate = PriorityGate()
    order: list[str] = []
    with gate.turn(urgent=False):
        threads = [
            enter(gate, False, "prefetch 1", order),
            enter(gate, True, "click 1", order),
            enter(gate, False, "prefetch 2", order),
            enter(gate, True, "click 2", order),
        ]
        time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(5)
    assert order == ["click 1", "click 2", "prefetch 1", "prefetch 2"]


def test_an_error_inside_lets_the_next_one_in() -> None:
    """Breaks if one image that cannot be encoded locks the encoder for good."""
    gate = PriorityGate()
    with pytest.raises(ZeroDivisionError), gate.turn(urgent=True):
        raise ZeroDivisionError
    with gate.turn(urgent=False):
        pass
