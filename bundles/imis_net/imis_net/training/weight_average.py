"""The exponential moving average of what a network learns: what is validated and served instead of the last step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

EMA_DECAY = 0.998


class WeightAverage:
    """Average of the trainable parameters of ``network``; frozen ones need no second copy."""

    def __init__(self, network: nn.Module, decay: float = EMA_DECAY) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {k: p.detach().clone() for k, p in network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """After an optimiser step; early ones count for more, so that the start is forgotten."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for key, theirs in network.named_parameters():
            if key in self.weights:
                self.weights[key].lerp_(theirs, 1 - decay)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        own = {k: p.detach().clone() for k, p in network.named_parameters() if k in self.weights}
        set_parameters(network, self.weights)
        try:
            yield
        finally:
            set_parameters(network, own)


@torch.no_grad()
def set_parameters(network: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values by parameter name; parameters that are not named keep theirs."""
    for key, parameter in network.named_parameters():
        if key in values:
            parameter.copy_(values[key])
