"""A run ahead stops between layers, and only the run that agreed to."""

import threading

import pytest
import torch
from torch import nn

from imis_net.interruption import Interrupted, interruptible_by, make_interruptible


class Pull(nn.Module):
    """A layer during which the event is set, as by a click."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop = stop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.stop.set()
        return x


def test_the_layer_after_the_event_does_not_run() -> None:
    """Breaks if a click waits for the whole encoder run of a slice that nobody looks at."""
    stop, last = threading.Event(), nn.Linear(2, 2)
    network = nn.Sequential(nn.Linear(2, 2), Pull(stop), last)
    make_interruptible(network)
    ran = []
    last.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(Interrupted), interruptible_by(stop):
        network(torch.zeros(1, 2))
    assert not ran


def test_other_threads_and_later_runs_go_on() -> None:
    """Breaks if stopping work ahead also stops the click that it was stopped for."""
    stop = threading.Event()
    stop.set()
    network = nn.Sequential(nn.Linear(2, 2))
    make_interruptible(network)
    answers = []
    with interruptible_by(stop):
        click = threading.Thread(target=lambda: answers.append(network(torch.zeros(1, 2))))
        click.start()
        click.join()
    answers.append(network(torch.zeros(1, 2)))
    assert len(answers) == 2
