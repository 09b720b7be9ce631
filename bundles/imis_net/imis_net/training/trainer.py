"""The training loop: stages of simulated interaction, averaged weights, validation, atomic checkpoints."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imis_net.checkpoint import save_weights
from imis_net.errors import DatasetError
from imis_net.evaluation.harness import evaluate, mean_dice
from imis_net.losses import InteractiveLoss
from imis_net.networks.imis_net import IMISNet
from imis_net.segmenter import TorchSegmenter
from imis_net.training.dataset import Record
from imis_net.training.interactive_step import InteractionPolicy, InteractiveStep
from imis_net.training.sampler import Sampler
from imis_net.training.splits import check_patients

log = logging.getLogger(__name__)

EMA_DECAY = 0.998
WARMUP_STEPS = 100
MAX_GRADIENT_NORM = 1.0


@dataclass
class Stage:
    """A part of the training with its own frame, prompts and loss.

    Attributes:
        image_size: the frame S of this stage; a convolutional encoder can learn on crops smaller than it serves.
        sampler: takes this stage's records and sizes.
        num_steps, num_images: optimiser steps, and images in each.
        learning_rate: its peak; it warms up, then falls along a cosine.
        max_seconds: the stage ends after so long even if steps are left; the cosine follows whichever is nearer.
    """

    image_size: int
    num_steps: int
    num_images: int
    learning_rate: float
    sampler: Sampler
    policy: InteractionPolicy
    loss: InteractiveLoss
    max_seconds: float = float("inf")


@dataclass
class Trainer:
    """Trains a network through its stages and keeps the averaged weights that validate best.

    Attributes:
        build: makes the network for an image size; its weights must not depend on that size.
        initialise: puts pretrained weights into the first stage's network.
        trunk_rate: the trunk's learning rate as a share of the other parts'.
        validation: records never trained on.
        out_dir: gets ``best.safetensors``, ``last.safetensors`` and ``log.jsonl``.
    """

    build: Callable[..., IMISNet]
    stages: Sequence[Stage]
    validation: Sequence[Record]
    out_dir: Path | str
    initialise: Callable[[IMISNet], None] | None = None
    trunk_rate: float = 0.3
    weight_decay: float = 0.01
    validate_every: int = 250
    seed: int = 0
    _best: float = field(default=-1.0, init=False)

    @property
    def _out(self) -> Path:
        return Path(self.out_dir)

    def run(self) -> float:
        """Train; returns the best validation Dice (mean of box and click).

        Raises:
            DatasetError: nothing to validate on, or patients on both sides of the split.
        """
        if not any(True for r in self.validation for _ in r.masks()):
            raise DatasetError(f"no target to validate on: {len(self.validation)} validation records")
        check_patients([r for s in self.stages for r in s.sampler.records], self.validation)
        self._out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        weights: dict[str, Tensor] | None = None
        for index, stage in enumerate(self.stages):
            network = self.build(image_size=stage.image_size)
            if weights is not None:
                network.load_state_dict(weights)
            elif self.initialise is not None:
                self.initialise(network)
            weights = self._run_stage(index, stage, network)
        return self._best

    def _run_stage(self, index: int, stage: Stage, network: IMISNet) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        average = copy.deepcopy(network).eval().requires_grad_(False)
        optimiser = self._optimiser(network, stage.learning_rate)
        step = InteractiveStep(network, stage.policy, stage.loss)
        network.train()
        start = time.monotonic()
        recent: list[tuple[float, list[float]]] = []
        progress = tqdm(range(1, stage.num_steps + 1), desc=f"stage {index}", mininterval=10)
        for number in progress:
            done = max(number / stage.num_steps, (time.monotonic() - start) / stage.max_seconds)
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _rate(number, done)
            loss, dices = self._train_step(network, stage, step, rng)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
            optimiser.step()
            _update_average(average, network, min(EMA_DECAY, (1 + number) / (10 + number)))
            recent.append((loss.item(), dices))
            if number % 25 == 0:
                shown = [d for _, d in recent[-50:]]
                progress.set_postfix(loss=np.mean([v for v, _ in recent[-50:]]), dice=np.mean([d[-1] for d in shown]))
            if number % self.validate_every == 0 or done >= 1:
                self._validate(index, number, average, recent)
                recent.clear()
            if done >= 1:
                break
        return average.state_dict()

    def _train_step(
        self, network: IMISNet, stage: Stage, step: InteractiveStep, rng: np.random.Generator
    ) -> tuple[Tensor, list[float]]:
        examples = [stage.sampler.draw(rng) for _ in range(stage.num_images)]
        images = torch.from_numpy(np.stack([e.image for e in examples])).permute(0, 3, 1, 2)
        images = images.contiguous(memory_format=torch.channels_last)
        features = network.encode_image((images - network.pixel_mean) / network.pixel_std)
        losses, dices = [], []
        for i, example in enumerate(examples):
            own = tuple(f[i : i + 1] for f in features)
            loss, dice = step(own, torch.from_numpy(example.targets), example.texts, rng, example.pixel_size)
            losses.append(loss)
            dices.append(dice)
        return torch.stack(losses).mean(), np.mean(dices, axis=0).tolist()

    def _optimiser(self, network: IMISNet, learning_rate: float) -> torch.optim.Optimizer:
        trunk = {id(p) for p in network.image_encoder.get_submodule("trunk").parameters()}
        learnable = [p for p in network.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            [
                {"params": [p for p in learnable if id(p) not in trunk], "peak": learning_rate},
                {"params": [p for p in learnable if id(p) in trunk], "peak": learning_rate * self.trunk_rate},
            ],
            lr=learning_rate,
            weight_decay=self.weight_decay,
        )

    def _validate(self, index: int, number: int, average: IMISNet, recent: list[tuple[float, list[float]]]) -> None:
        """Score the averaged weights in the frame they will be served in."""
        served = self.build()
        served.load_state_dict(average.state_dict())
        segmenter = TorchSegmenter(served)
        by_strategy = {s: list(evaluate(segmenter, self.validation, s)) for s in ("box", "click", "text")}
        scores = {s: mean_dice(of) for s, of in by_strategy.items() if of}  # no text where no name is known
        entry = {
            "stage": index,
            "step": number,
            "time": time.strftime("%H:%M:%S"),
            "loss": float(np.mean([v for v, _ in recent])),
            "train_dice": float(np.mean([d[-1] for _, d in recent])),
            **{f"val_{k}": round(v, 4) for k, v in scores.items()},
        }
        with (self._out / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        log.info("%s", entry)
        metadata = {"architecture": served.name, "validation": json.dumps(scores)}
        save_weights(served, self._out / "last.safetensors", metadata)
        score = float(np.mean([scores["box"], scores["click"]]))
        if score > self._best:
            self._best = score
            save_weights(served, self._out / "best.safetensors", metadata)


def _rate(step: int, done: float) -> float:
    """Share of the peak learning rate after ``step`` steps, when ``done`` of the stage is over."""
    cosine = 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
    return min(1.0, step / WARMUP_STEPS) * (0.02 + 0.98 * cosine)


@torch.no_grad()
def _update_average(average: IMISNet, network: IMISNet, decay: float) -> None:
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
