"""A training's state in a file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imis_net.errors import CheckpointError
from imis_net.training.checkpointing import Place, read_place, restore, save_checkpoint
from imis_net.training.weight_average import WeightAverage


def training(seed: int = 0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    network[1].bias.requires_grad_(False)
    learnable = [p for p in network.parameters() if p.requires_grad]
    return network, WeightAverage(network), torch.optim.Adam(learnable, lr=0.1)


def take_steps(network, average, optimiser, number: int) -> list[float]:
    losses = []
    for _ in range(number):
        loss = (network(torch.randn(8, 3)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update(network)
        losses.append(loss.item())
    return losses


def test_restored_training_goes_on_bit_for_bit(tmp_path):
    """Breaks if moments, step counts, the average, its count, or the generator's state are not kept."""
    path, one = tmp_path / "checkpoint.safetensors", training()
    take_steps(*one, 3)
    save_checkpoint(path, Place("a recipe", 0, 3, 1.5, 0.7, "run"), *one)
    expected = take_steps(*one, 3)
    other = training(seed=9)
    restore(path, *other)
    assert take_steps(*other, 3) == expected
    assert all(v.equal(one[1].weights[k]) for k, v in other[1].weights.items())
    assert read_place(path) == Place("a recipe", 0, 3, 1.5, 0.7, "run")


@pytest.mark.parametrize("step", ["write_bytes", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    """Breaks if a full disk destroys the checkpoint that was there, or leaves a draft behind."""
    path, one = tmp_path / "checkpoint.safetensors", training()
    save_checkpoint(path, Place("a recipe", step=1), *one)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path if step == "write_bytes" else os, step, full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, Place("a recipe", step=2), *one)
    assert read_place(path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    """Breaks if weights, a damaged file or another network's state end in a traceback or load in part."""
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_place(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="expected a training checkpoint"):
        read_place(path)
    save_checkpoint(path, Place("a recipe"), *training())
    network = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="not a checkpoint of this training"):
        restore(path, network, WeightAverage(network), torch.optim.Adam(network.parameters()))
