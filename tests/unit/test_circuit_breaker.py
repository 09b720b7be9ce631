"""The circuit breaker: a server that is down costs its callers nothing, one that is back is used again."""

from __future__ import annotations

from imis_net.adapters.circuit_breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(max_failures=2, cooldown_s=10, clock=clock)
    breaker.failed("gone")
    breaker.failed("gone")
    return breaker


def test_opens_after_failures_in_a_row_only() -> None:
    """Breaks if one lost call among many shuts the server out, or a dead one is asked for ever."""
    breaker = CircuitBreaker(max_failures=2, cooldown_s=10, clock=Clock())
    breaker.failed("lost")
    breaker.succeeded()
    breaker.failed("lost")
    assert breaker.allows()
    breaker.failed("gone")
    assert not breaker.allows()
    assert breaker.reason == "gone"


def test_after_the_pause_one_caller_probes() -> None:
    """Breaks if all users wait for a dead server together, or nobody ever looks whether it is back."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10
    assert [breaker.allows() for _ in range(3)] == [True, False, False]


def test_a_probe_that_succeeds_closes_it() -> None:
    """Breaks if a restarted server stays unused."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert not breaker.is_open
    assert breaker.reason == ""


def test_a_probe_that_fails_starts_the_pause_anew() -> None:
    """Breaks if a dead server is asked by every click after the first pause."""
    clock = Clock()
    breaker = opened(clock)
    clock.now = 10
    assert breaker.allows()
    breaker.failed("still gone")
    clock.now = 19
    assert not breaker.allows()
    clock.now = 20
    assert breaker.allows()
