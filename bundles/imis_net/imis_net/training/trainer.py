"""The training loop: stages of simulated interaction, resumable, on one process or several.

An example and its annotator's clicks are a function of the seed and the example's position alone. So a killed training
goes on with the same data, and several processes share a step's images and give what one process gives.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from imis_net.checkpoint import save_weights
from imis_net.errors import DatasetError, ImisError
from imis_net.losses import InteractiveLoss
from imis_net.networks.imis_net import IMISNet
from imis_net.segmenter import TorchSegmenter
from imis_net.training.batches import Batch, read_batches
from imis_net.training.checkpointing import Place, read_place, restore, save_checkpoint
from imis_net.training.dataset import Record
from imis_net.training.distributed import World, joined
from imis_net.training.epoch_sampler import EpochSampler
from imis_net.training.grounding import Coverage, grounding_loss
from imis_net.training.interactive_step import InteractionPolicy, InteractiveStep
from imis_net.training.sampler import Sampler
from imis_net.training.schedules import Cosine, Schedule
from imis_net.training.splits import check_patients
from imis_net.training.training_log import TrainingLog
from imis_net.training.validation import Protocol
from imis_net.training.weight_average import EMA_DECAY, WeightAverage

log = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Stage:
    """A part of the training with its own frame, prompts and loss.

    Attributes:
        image_size: the frame S of this stage; a convolutional encoder can learn on crops smaller than it serves.
        sampler: takes this stage's records and sizes.
        num_steps, num_images: optimiser steps, and images in each, over all processes; ``num_epochs`` instead of
            ``num_steps`` for samplers that know an epoch.
        learning_rate: its peak; ``schedule`` says what share of it a step gets.
        max_seconds: the stage ends after so long even if steps are left; the schedule follows whichever is nearer.
        images_per_call: images that may share a decoder call, and then the kinds of their prompts; with one a GPU
            is idle most of the time.
        grounding_weight: of the loss on where each known name lies (``grounding_loss``), in a network that grounds
            text.
        learn_encoders: without it the image and text encoders stay as they are; prompt encoder and decoder learn.
    """

    image_size: int
    num_steps: int | None
    num_images: int
    learning_rate: float
    sampler: Sampler | EpochSampler
    policy: InteractionPolicy
    loss: InteractiveLoss
    max_seconds: float = float("inf")
    num_epochs: int | None = None
    schedule: Schedule = field(default_factory=Cosine)
    images_per_call: int = 1
    grounding_weight: float = 0.0
    learn_encoders: bool = True

    @property
    def total_steps(self) -> int:
        if self.num_steps is not None:
            return self.num_steps
        return (self.num_epochs or 1) * (self.steps_per_epoch or 1)

    @property
    def steps_per_epoch(self) -> int | None:
        return self.sampler.steps_per_epoch(self.num_images) if isinstance(self.sampler, EpochSampler) else None


@dataclass
class Trainer:
    """Trains a network through its stages and keeps the averaged weights that validate best.

    Attributes:
        build: makes the network for an image size; its weights must not depend on that size.
        initialise: puts pretrained weights into the first stage's network.
        trunk_rate: the trunk's learning rate as a share of the other parts', where the trunk learns.
        validation: records never trained on, scored by ``protocol`` every ``validate_every`` steps (None: each epoch).
        checkpoint_every: steps between resumable checkpoints; there is one after each validation, too.
        precision: ``float32``, or ``bfloat16`` for mixed precision on a GPU; a CPU, where it can be hundreds of times
            slower, stays in float32.
        served_size: the frame of validation and serving; None: the network's own.
        ema_decay: of the average that is validated and served; 0 for the last step's weights.
        num_workers: processes that read examples ahead.
        out_dir: gets ``best.safetensors``, ``last.safetensors``, ``checkpoint.safetensors`` and the log's files; a
            training that was interrupted there goes on.
    """

    build: Callable[..., IMISNet]
    stages: Sequence[Stage]
    validation: Sequence[Record]
    out_dir: Path | str
    initialise: Callable[[IMISNet], None] | None = None
    trunk_rate: float = 0.3
    weight_decay: float = 0.01
    validate_every: int | None = 250
    seed: int = 0
    protocol: Protocol = field(default_factory=Protocol)
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    max_gradient_norm: float | None = 1.0
    served_size: int | None = None
    ema_decay: float = EMA_DECAY
    precision: str = "float32"
    device: str | None = None
    checkpoint_every: int = 250
    num_workers: int = 0
    tensorboard: bool = False
    mlflow: bool = False

    def run(self) -> float:
        """Train, or go on where an interrupted training stopped; returns the best validation Dice.

        Raises:
            DatasetError: nothing to validate on, or patients on both sides of the split.
            CheckpointError: the folder's checkpoint is of another recipe, or start weights do not fit.
        """
        if self.precision not in PRECISIONS:
            raise DatasetError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        self.protocol.check(self.validation)
        for stage in self.stages:
            if isinstance(stage.sampler, EpochSampler):
                stage.sampler.check()
            check_patients(stage.sampler.records, self.validation)
        with joined(self.device) as world:
            return _Run(self, world).all_stages()

    def main(self) -> float:
        """``run`` for a command: input that cannot be used is one sentence and exit status 2."""
        try:
            return self.run()
        except ImisError as error:
            print(f"train: {error}", file=sys.stderr)
            sys.exit(2)

    def make_optimiser(self, network: IMISNet, learning_rate: float) -> torch.optim.Optimizer:
        trunk = {id(p) for p in network.image_encoder.trunk.parameters()}
        learnable = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learnable if id(p) not in trunk], "peak": learning_rate},
            {"params": [p for p in learnable if id(p) in trunk], "peak": learning_rate * self.trunk_rate},
        ]
        return self.optimiser([g for g in groups if g["params"]], lr=learning_rate, weight_decay=self.weight_decay)

    @property
    def recipe(self) -> str:
        """Identifies what must not change between a kill and a restart."""
        stages = [
            [s.image_size, s.total_steps, s.num_images, s.learning_rate, repr(s.policy), s.learn_encoders]
            for s in self.stages
        ]
        facts = [self.seed, self.precision, self.weight_decay, self.ema_decay, stages]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class _Run:
    """One process's part in one training."""

    def __init__(self, trainer: Trainer, world: World) -> None:
        self.trainer, self.world = trainer, world
        self.out_dir = Path(trainer.out_dir)
        self.checkpoint = self.out_dir / "checkpoint.safetensors"
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self.place = self._place()
        self.log: TrainingLog | None = None
        dtype = PRECISIONS[trainer.precision]
        is_mixed = dtype is not torch.float32 and world.device.type != "cpu"
        self.autocast: Callable[[], AbstractContextManager] = partial(
            torch.autocast,
            world.device.type,
            dtype=dtype,
            enabled=is_mixed,
        )

    def _place(self) -> Place:
        if not self.checkpoint.exists():
            return Place(self.trainer.recipe)
        place = read_place(self.checkpoint)
        if place.recipe != self.trainer.recipe:
            raise DatasetError(f"{self.checkpoint} is of another recipe; choose another output folder")
        return place

    def all_stages(self) -> float:
        """Train what is left to train."""
        self.world.wait()
        if self.world.is_first:
            self.log = TrainingLog(self.out_dir, self.place, self.trainer.tensorboard, self.trainer.mlflow)
        finished = False
        try:
            torch.manual_seed(self.trainer.seed)
            resumed, network = self.checkpoint.exists(), None
            while self.place.stage < len(self.trainer.stages):
                network = self._stage(network, resumed)
                resumed = False
                self.place.stage, self.place.step, self.place.seconds = self.place.stage + 1, 0, 0.0
            finished = True
        finally:
            if self.log is not None:
                self.log.close(finished)
        return self.place.best

    def _stage(self, previous: IMISNet | None, resumed: bool) -> IMISNet:
        stage = self.trainer.stages[self.place.stage]
        self._prepare(stage, previous, resumed)
        if self.log is not None:
            self.log.begin_stage(self.place.stage, stage.total_steps, self.place.step)
        self.began = time.monotonic() - self.place.seconds
        is_over = self.place.seconds >= stage.max_seconds
        steps = range(0) if is_over else range(self.place.step + 1, stage.total_steps + 1)
        for number, batch in zip(steps, self._batches(stage, steps), strict=True):
            done = self._done(stage, number)
            self._one_step(stage, number, done, batch)
            if done >= 1 or number % self._validate_every(stage) == 0:
                self._validate(stage)
            if done >= 1:
                break
            if number % self.trainer.checkpoint_every == 0 or number % self._validate_every(stage) == 0:
                self._save()
        if self.log is not None:
            self.log.end_stage()
        self._save()
        with self.average.applied(self.network):
            return _copied(self.trainer.build(image_size=stage.image_size), self.network)

    def _prepare(self, stage: Stage, previous: IMISNet | None, resumed: bool) -> None:
        """Network, average and optimiser: from the stage before, the checkpoint, or the start weights."""
        self.network = self.trainer.build(image_size=stage.image_size)
        if previous is not None:
            self.network.load_state_dict(previous.state_dict())
        elif not resumed and self.trainer.initialise is not None:
            self.trainer.initialise(self.network)
        if not stage.learn_encoders:
            self.network.image_encoder.requires_grad_(False)
            self.network.text_encoder.requires_grad_(False)
        self.network.to(self.world.device).to(memory_format=torch.channels_last)
        self.network.train()
        self.optimiser = self.trainer.make_optimiser(self.network, stage.learning_rate)
        self.average = WeightAverage(self.network, self.trainer.ema_decay)
        if resumed:
            restore(self.checkpoint, self.network, self.average, self.optimiser)
        self.interact = InteractiveStep(self.network, stage.policy, stage.loss, self.autocast)

    def _batches(self, stage: Stage, steps: range) -> Iterator[Batch | None]:
        """This process's images of each step."""
        mine = (self.world.mine(range((n - 1) * stage.num_images, n * stage.num_images)) for n in steps)
        return read_batches(stage.sampler, [self.trainer.seed, self.place.stage], mine, self.trainer.num_workers)

    def _one_step(self, stage: Stage, number: int, done: float, batch: Batch | None) -> None:
        rate = stage.schedule(number, done)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimiser.zero_grad()
        sums = self.world.sum(self._backward(stage, batch))
        self.world.sum_gradients(self.network)
        if self.trainer.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.trainer.max_gradient_norm)
        self.optimiser.step()
        self.average.update(self.network)
        self.place.step, self.place.seconds = number, self._seconds()
        if self.log is not None:
            loss, num_examples, *dices = sums.tolist()
            means = [d / num_examples for d in dices] if num_examples else []
            self.log.step(self.place.stage, number, self._total, loss, means, rate * stage.learning_rate)

    def _backward(self, stage: Stage, batch: Batch | None) -> Tensor:
        """Gradients of this process's images: encode each once, interact, free each round's graph before the next.

        Returns:
            float64 [3 + K]: sum of loss shares, number of examples, sums of Dice by round.
        """
        num_rounds = stage.policy.num_rounds + 1
        sums = torch.zeros(2 + num_rounds, dtype=torch.float64, device=self.world.device)
        if batch is None:
            return sums
        features = self._encode(batch.images)
        leaves = tuple(f.detach().float().requires_grad_() for f in features)
        self._ground(stage, leaves, batch.coverages)
        rngs = [np.random.default_rng([self.trainer.seed, self.place.stage, p, 1]) for p in batch.positions]
        for examples in batch.calls(stage.images_per_call):
            images = [e.image for e in examples]
            own = tuple(leaf[images] for leaf in leaves)
            targets = torch.cat([batch.targets[e.rows] for e in examples])
            texts = None if examples[0].texts is None else [t for e in examples for t in e.texts or ()]
            share = sum(e.share for e in examples) / (stage.num_images * num_rounds)
            rounds = self.interact.rounds(
                own, targets, texts, [rngs[i] for i in images], [e.pixel_size for e in examples]
            )
            for k, (loss, dice) in enumerate(rounds):
                # The text's embedding may be shared by all rounds: its graph must outlive the first.
                (loss * share).backward(retain_graph=True)
                sums[0] += loss.detach() * share
                sums[2 + k] += dice * len(images)
            sums[1] += len(images)
        used = [(f, leaf.grad) for f, leaf in zip(features, leaves, strict=True) if f.requires_grad]
        gradients = [(f, g.to(f.dtype)) for f, g in used if g is not None]
        if gradients:
            torch.autograd.backward([f for f, _ in gradients], [g for _, g in gradients])
        return sums

    def _ground(self, stage: Stage, features: tuple[Tensor, ...], coverages: Sequence[Coverage]) -> None:
        """Gradients of the names' places, where the stage learns them."""
        if not stage.grounding_weight:
            return
        with self.autocast():
            loss = grounding_loss(self.network, features, coverages)
        if loss is not None:
            share = sum(bool(c) for c in coverages) / stage.num_images
            (loss * (stage.grounding_weight * share)).backward()

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.to(self.world.device, non_blocking=True).permute(0, 3, 1, 2)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return self.network.encode_image((pixels - self.network.pixel_mean) / self.network.pixel_std)

    def _validate(self, stage: Stage) -> None:
        """Score the averaged weights in the frame they will be served in, and keep them."""
        size = self.trainer.served_size
        served = self.trainer.build() if size is None else self.trainer.build(image_size=size)
        with self.average.applied(self.network):
            _copied(served, self.network)
        segmenter = TorchSegmenter(served, self.world.device)
        scores = self.trainer.protocol.scores(segmenter, self.trainer.validation, self.world)
        score = self.trainer.protocol.choice(scores)
        if self.log is not None:
            metadata = {"architecture": served.name, "validation": json.dumps(scores)}
            save_weights(served, self.out_dir / "last.safetensors", metadata)
            if score > self.place.best:
                save_weights(served, self.out_dir / "best.safetensors", metadata)
            self.log.validation(self.place.stage, self.place.step, self._total, scores)
        self.place.best = max(self.place.best, score)

    def _validate_every(self, stage: Stage) -> int:
        return self.trainer.validate_every or stage.steps_per_epoch or stage.total_steps

    def _save(self) -> None:
        if self.world.is_first:
            save_checkpoint(self.checkpoint, self.place, self.network, self.average, self.optimiser)

    def _done(self, stage: Stage, number: int) -> float:
        """Share of the stage that is over with this step, in steps or in time."""
        by_time = self._seconds() / stage.max_seconds
        return max(number / stage.total_steps, self.world.agreed(by_time) if by_time else 0.0)

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def _total(self) -> int:
        """Steps over all stages so far."""
        return sum(s.total_steps for s in self.trainer.stages[: self.place.stage]) + self.place.step


def _copied(to: IMISNet, network: IMISNet) -> IMISNet:
    to.load_state_dict(network.state_dict())
    return to
