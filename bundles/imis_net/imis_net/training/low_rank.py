"""Low-rank adapters, by which a frozen trunk learns: an adapted weight W acts as W + (alpha / r) B A.

Source: LoRA (arXiv 2106.09685). Adapters live only while something learns: merged, they are the weights of the plain
layout again, and whoever exports, serves or loads those knows nothing of adapters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

ALPHA = 16.0
"""Its quotient by the rank scales the product, so that another rank needs no other learning rate."""
MAX_RANK = 64


class LowRank(nn.Module):
    """The adapter of one weight [out, in] or, of a pointwise convolution, [out, in, 1, 1]."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        num_out, num_in = weight.shape[:2]
        a = nn.init.kaiming_uniform_(torch.empty(rank, num_in), a=5**0.5, generator=generator)
        self.a = nn.Parameter(a.to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(num_out, rank))  # zero: at the start nothing changes
        self.scale = ALPHA / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.b @ self.a).view_as(weight)


def check_rank(rank: int) -> int:
    """The rank, if it is one; 0 is no adapters.

    Raises:
        ValueError: it is not; says what was given and what is accepted.
    """
    if not 0 <= rank <= MAX_RANK:
        raise ValueError(f"got {rank}, expected a rank from 1 to {MAX_RANK}, or 0 for no adapters")
    return rank


def add_adapters(trunk: nn.Module, rank: int, seed: int) -> None:
    """Adapt every linear layer and pointwise convolution; these adapters learn, whatever the rest does.

    Raises:
        ValueError: a rank that is none, or nothing to adapt, as in a network that was made without a trunk.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = _adaptable(trunk)
    if not layers or not check_rank(rank):
        raise ValueError(f"adapters of rank {rank} for {len(layers)} layers: expected a rank above 0 and a trunk")
    for layer in layers:
        register_parametrization(layer, "weight", LowRank(layer.weight, rank, generator))


def merge_adapters(trunk: nn.Module) -> None:
    """Make what the adapters learnt part of the weights they adapt; a trunk without adapters stays as it is."""
    for layer in list(trunk.modules()):
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight", leave_parametrized=True)


def _adaptable(trunk: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    linear = [m for m in trunk.modules() if isinstance(m, nn.Linear)]
    pointwise = [m for m in trunk.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1]
    return [*linear, *pointwise]
