"""A training's whole state in one safetensors file, written whole or not at all: nothing in it is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from imis_net.errors import CheckpointError
from imis_net.files import write_durably
from imis_net.training.weight_average import WeightAverage

VERSION = "1"


@dataclass
class Place:
    """Where a training stands; with it and the seed, every later example and click is determined.

    Attributes:
        recipe: identifies the recipe; a checkpoint of another one is refused.
        stage, step: steps taken in this stage; a stage's examples are numbered by its steps.
        seconds: spent in this stage, for stages with a time limit.
        best: the best validation score so far; ``num_without_gain``: validations since, where they are counted.
        run_id: the experiment tracker's name for this run.
    """

    recipe: str
    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    num_without_gain: int = 0
    run_id: str = ""


def save_checkpoint(
    path: Path,
    place: Place,
    network: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Write beside the target, flush to the disk, then rename; a kill at any moment leaves the old or the new file.

    Args:
        best: the weights of ``place.best``, where they have no file of their own.

    Raises:
        OSError: the disk is full or cannot be written; the old file stays.
    """
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.weights.items()}
    tensors |= {f"best.{k}": v for k, v in (best or {}).items()}
    tensors |= _optimiser_tensors(network, optimiser)
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    facts = {"version": VERSION, "place": json.dumps(asdict(place)), "num_updates": str(average.num_updates)}
    write_durably(path, to_safetensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, facts))


def read_place(path: Path) -> Place:
    """Where the checkpoint's training stands.

    Raises:
        CheckpointError: no such checkpoint.
    """
    facts, _ = _read(path, only_facts=True)
    return Place(**json.loads(facts["place"]))


def restore(
    path: Path, network: nn.Module, average: WeightAverage, optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Put everything back as ``save_checkpoint`` found it; returns its ``best``.

    Raises:
        CheckpointError: not a checkpoint of this training.
    """
    facts, tensors = _read(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    try:
        network.load_state_dict(parts["network"])
        average.num_updates = int(facts["num_updates"])
        for name, value in average.weights.items():
            value.copy_(parts["average"][name])
        _load_optimiser(network, optimiser, parts.get("optimiser", {}))
        torch.set_rng_state(parts["rng"]["cpu"])
        if torch.cuda.is_available() and "cuda" in parts["rng"]:
            torch.cuda.set_rng_state(parts["rng"]["cuda"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path.name}: not a checkpoint of this training ({str(error)[:200]})") from error
    return parts.get("best", {})


def _optimiser_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Each parameter's moments by its name; learning rates follow from the step."""
    names: dict[Tensor, str] = {p: k for k, p in network.named_parameters()}
    return {
        f"optimiser.{names[parameter]}:{kind}": torch.as_tensor(value)
        for parameter, moments in optimiser.state.items()
        for kind, value in moments.items()
    }


def _load_optimiser(network: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(network.named_parameters())
    optimiser.state.clear()
    for key, value in tensors.items():
        name, _, kind = key.rpartition(":")
        on_device = value if kind == "step" else value.to(parameters[name].device)
        optimiser.state[parameters[name]][kind] = on_device


def _read(path: Path, only_facts: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("version") != VERSION:
                raise CheckpointError(f"{path.name}: expected a training checkpoint of version {VERSION}")
            return facts, {} if only_facts else {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: not a readable checkpoint ({error})") from error
