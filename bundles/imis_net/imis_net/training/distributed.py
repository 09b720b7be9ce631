"""Several processes training as one, started by torchrun.

Gradients are summed over processes, which is what DistributedDataParallel does. Its wrapper hooks one forward and one
backward call a step, but a step here is a conversation: an encoder call, 1 + K decoder calls, and a backward call after
each of them, so that only one round's graph is held at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

PATIENCE = timedelta(hours=2)
"""How long the others wait for the slowest, which may be reading a slow disk."""


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank, size: its number and how many there are.
        device: where it computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mine(self, items: Iterable) -> list:
        """This process's share: every ``size``-th, from its own number."""
        return [item for i, item in enumerate(items) if i % self.size == self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def agreed(self, value: float) -> float:
        """One value for all: the mean of each process's."""
        return float(self.sum(torch.tensor(value, device=self.device))) / self.size

    def sum_gradients(self, network: nn.Module) -> None:
        """Sum gradients over all processes; what no process used stays without one, as in a single process."""
        if self.size == 1:
            return
        parameters = [p for p in network.parameters() if p.requires_grad]
        used = self.sum(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device))
        learning = [p for p, n in zip(parameters, used.tolist(), strict=True) if n]
        if not learning:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learning])
        self.sum(flat)
        for parameter, gradient in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def wait(self) -> None:
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined(device: str | None = None) -> Iterator[World]:
    """The world that torchrun's variables tell of, or this process alone.

    Args:
        device: such as ``cpu`` or ``cuda:1``; by default a GPU of this process's own where there is one, which is
            what ``cuda`` asks for, too.
    """
    if device == "cuda" or (device is None and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = device or "cpu"
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(device=torch.device(device))
        return
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), size, torch.device(device))
    finally:
        distributed.destroy_process_group()


def images_per_step(per_process: int) -> int:
    """The global batch when each of torchrun's processes takes ``per_process`` images."""
    return per_process * int(os.environ.get("WORLD_SIZE", 1))
