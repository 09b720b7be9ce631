"""A network run that can be stopped between two layers: work done ahead gives way to work that is waited for."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_STOP: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stop", default=None)


class Interrupted(Exception):
    """The event of ``interruptible_by`` was set before the run was through."""


def make_interruptible(network: nn.Module) -> None:
    """Let every layer look at the event of the thread it runs in; others notice nothing."""
    for module in network.modules():
        if not any(module.children()):
            module.register_forward_pre_hook(_look)


@contextmanager
def interruptible_by(stop: threading.Event) -> Iterator[None]:
    """Runs of this thread, in this block, raise ``Interrupted`` once the event is set."""
    token = _STOP.set(stop)
    try:
        yield
    finally:
        _STOP.reset(token)


def _look(module: nn.Module, arguments: object) -> None:
    stop = _STOP.get()
    if stop is not None and stop.is_set():
        raise Interrupted
