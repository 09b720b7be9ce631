"""Fine-tuning on a few labelled images in bounded time: neck, prompt encoder and decoder learn, the trunk does not.

The trunk's features may come from anywhere (``trunk_features.TrunkFeatures``); with a provider, the network may even
have been made without a trunk. Where adapters are asked for, the trunk learns by those (``low_rank``), and has to run
at every step.

A step's image and clicks are a function of the seed and the step, so that a run which was killed goes on as if it had
not been (``Unfinished``), as far as steps and not the clock decide its end.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from imis_net.checkpoint import rewrite_safetensors
from imis_net.errors import CheckpointError, DatasetError
from imis_net.evaluation.harness import evaluate, mean_dice
from imis_net.losses import InteractiveLoss
from imis_net.networks.imis_net import IMISNet
from imis_net.segmenter import model_frame
from imis_net.training.checkpointing import Place, read_place, restore, save_checkpoint
from imis_net.training.dataset import Record
from imis_net.training.interactive_step import InteractionPolicy, InteractiveStep
from imis_net.training.low_rank import add_adapters, merge_adapters
from imis_net.training.sampler import canonical_name
from imis_net.training.splits import check_patients
from imis_net.training.trunk_features import (
    OwnTrunk,
    TrunkCache,
    TrunkFeatures,
    TrunkFedSegmenter,
    image_key,
    on_network,
)
from imis_net.training.weight_average import WeightAverage, set_parameters

log = logging.getLogger(__name__)

WARMUP_STEPS = 20
MAX_GRADIENT_NORM = 1.0


def _prompts() -> InteractionPolicy:
    return InteractionPolicy(
        {"box": 0.4, "click": 0.4, "text": 0.2}, num_rounds=1, keep_clicks=True, mask_probability=0.5
    )


@dataclass(frozen=True)
class FineTuning:
    """How long and how hard to fine-tune.

    Attributes:
        max_steps, max_seconds: the end, whichever comes first; the learning rate falls towards it.
        validate_every: steps between validations.
        patience: validations without a better score after which it ends.
        num_targets: targets of one image in a step.
        learn_neck: without it the image encoder stays as it is, and with it every embedding that is kept.
        adapter_rank: of the trunk's adapters; 0 is none. With them the trunk changes, and no kept features serve.
    """

    max_steps: int = 2000
    max_seconds: float = 600.0
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    validate_every: int = 100
    patience: int = 5
    num_targets: int = 4
    learn_neck: bool = True
    adapter_rank: int = 0
    seed: int = 0
    policy: InteractionPolicy = field(default_factory=_prompts)
    loss: InteractiveLoss = field(default_factory=lambda: InteractiveLoss(others_weight=0.3))


@dataclass(frozen=True)
class Unfinished:
    """Where a run keeps its state, for one of the same start, settings and records that goes on after it was killed.

    Attributes:
        path: written after validations, whole or not at all, at most every ``every_s`` seconds.
        start: identifies the start weights.
    """

    path: Path
    start: str
    every_s: float


@dataclass(frozen=True)
class Progress:
    """What a person waiting wants to know.

    Attributes:
        fraction: of the steps or of the time, whichever is further, in [0, 1].
        loss: of the last step; ``round_dices``: its mean Dice after each round.
        best_dice: the best validation Dice so far; the start's, before anything is better.
    """

    step: int
    fraction: float
    seconds_left: float
    loss: float
    round_dices: tuple[float, ...]
    best_dice: float


@dataclass(frozen=True)
class FineTuned:
    """The outcome; ``ended_by`` is ``steps``, ``time``, ``patience`` or ``stop``."""

    start_dice: float
    best_dice: float
    num_steps: int
    seconds: float
    ended_by: str


def fine_tune(
    network: IMISNet,
    records: Sequence[Record],
    validation: Sequence[Record],
    settings: FineTuning,
    trunk_features: TrunkFeatures | None = None,
    on_progress: Callable[[Progress], object] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    unfinished: Unfinished | None = None,
) -> FineTuned:
    """Fine-tune ``network`` in place; it ends with the weights that validated best, the start's if none did better.

    Args:
        network: with its start weights.
        records: to learn from.
        validation: of other patients; scored by first boxes and first clicks with fixed seeds.
        trunk_features: who has the trunk's maps; by default the network's own trunk, once per image, or at every step
            where adapters change it.
        on_progress: called after each step.
        should_stop: asked after each step.
        unfinished: what a killed run left is gone on from; a run that ends leaves it to the caller to remove.

    Raises:
        OSError: the disk is full, where the state is kept.
        CheckpointError: the kept state is damaged.
        DatasetError: nothing to learn from or to validate on, or patients on both sides.
        ValueError: adapters, but no trunk of the network's own to adapt.
    """
    _check(records, validation)
    freeze_trunk(network)
    if not settings.learn_neck:
        network.image_encoder.requires_grad_(False)
    if settings.adapter_rank:
        if trunk_features is not None:
            raise ValueError("adapters change the trunk at every step: expected no features from elsewhere")
        add_adapters(network.image_encoder.trunk, settings.adapter_rank, settings.seed)
        trunk_features = OwnTrunk(network, learns=True)
    run = _Run(network, settings, trunk_features or TrunkCache(OwnTrunk(network)), validation, unfinished)
    run.start([r for r in records if any(True for _ in r.masks())])
    ended_by = run.ended_by(stop=False) if run.go_on() else ""
    while not ended_by:
        loss, dices = run.step()
        if run.num_steps % settings.validate_every == 0 or run.fraction >= 1:
            run.validate()
            run.keep()
        on_progress(run.progress(loss, dices))
        ended_by = run.ended_by(should_stop())
    return run.finish(ended_by)


def freeze_trunk(network: IMISNet) -> None:
    network.image_encoder.trunk.requires_grad_(False)


def save_fine_tuned(network: IMISNet, start: Path, path: Path, metadata: dict[str, str]) -> None:
    """Write the whole network atomically in the precision of ``start``, with the trunk of that where it has none.

    Raises:
        CheckpointError: ``start`` cannot be read any more, or is no safetensors file.
        OSError: the disk is full or the folder missing; nothing is left behind.
    """
    learnt = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    rewrite_safetensors(start, path, learnt, metadata)


class _Run:
    """The state of one fine-tuning."""

    def __init__(
        self,
        network: IMISNet,
        settings: FineTuning,
        trunk_features: TrunkFeatures,
        validation: Sequence[Record],
        unfinished: Unfinished | None,
    ) -> None:
        self.network, self.settings, self.trunk_features = network, settings, trunk_features
        self.validation, self.unfinished = validation, unfinished
        self.learnable = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.learnable, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.interact = InteractiveStep(network, settings.policy, settings.loss)
        self.average = WeightAverage(network)
        self.num_steps = self.num_without_gain = 0
        self.validation_seconds = 0.0
        self.began = self.kept_at = time.monotonic()

    def start(self, records: Sequence[Record]) -> None:
        self.records = records
        self.start_dice = self.best_dice = self._score()
        self.best = {k: v.clone() for k, v in self.average.weights.items()}

    def go_on(self) -> bool:
        """From the state that a killed run of the same recipe left; whether there was one."""
        if self.unfinished is None or not self.unfinished.path.is_file():
            return False
        try:
            place = read_place(self.unfinished.path)
        except CheckpointError as error:
            log.warning("what a killed run left cannot be read: %s", error)
            return False
        if place.recipe != self.recipe:
            return False
        self.best = restore(self.unfinished.path, self.network, self.average, self.optimiser)
        self.best_dice, self.num_steps, self.num_without_gain = place.best, place.step, place.num_without_gain
        self.began = time.monotonic() - place.seconds
        log.info("a killed run goes on after step %d", place.step)
        return True

    def keep(self) -> None:
        """The state after a validation, if the last one kept is old enough."""
        if self.unfinished is None or time.monotonic() - self.kept_at < self.unfinished.every_s:
            return
        place = Place(
            self.recipe,
            step=self.num_steps,
            seconds=self.seconds,
            best=self.best_dice,
            num_without_gain=self.num_without_gain,
        )
        save_checkpoint(self.unfinished.path, place, self.network, self.average, self.optimiser, self.best)
        self.kept_at = time.monotonic()

    @cached_property
    def recipe(self) -> str:
        """Identifies what must not change between a kill and a restart."""
        start = self.unfinished.start if self.unfinished else ""
        shapes = [(name, tuple(parameter.shape)) for name, parameter in self.network.named_parameters()]
        digest = hashlib.sha256(f"{start}|{self.settings}|{shapes}".encode())
        for record in (*self.records, *self.validation):
            digest.update(image_key(record.image).encode())
            for name, mask in record.masks():
                digest.update(name.encode() + np.packbits(mask).tobytes())
        return digest.hexdigest()[:16]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def fraction(self) -> float:
        return min(1.0, max(self.num_steps / self.settings.max_steps, self.seconds / self.max_seconds))

    @property
    def max_seconds(self) -> float:
        """For steps: the validation after the last one ends in time, too, unless it is the slowest so far."""
        return max(self.settings.max_seconds - self.validation_seconds, self.settings.max_seconds / 2)

    def step(self) -> tuple[float, list[float]]:
        self.num_steps += 1
        self.rng = np.random.default_rng([self.settings.seed, self.num_steps])
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * _rate(self.num_steps, self.fraction)
        self.network.train()
        maps, targets, texts = self._draw()
        loss, dices = self.interact(self.network.image_encoder.from_trunk(maps), targets, texts, self.rng)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.learnable, MAX_GRADIENT_NORM)
        self.optimiser.step()
        self.average.update(self.network)
        return loss.item(), dices

    def validate(self) -> None:
        with self.average.applied(self.network):
            dice = self._score()
        if dice > self.best_dice:
            self.best_dice, self.num_without_gain = dice, 0
            self.best = {k: v.clone() for k, v in self.average.weights.items()}
        else:
            self.num_without_gain += 1

    def progress(self, loss: float, dices: Sequence[float]) -> Progress:
        left = self.seconds / self.fraction - self.seconds if self.fraction else self.max_seconds
        return Progress(self.num_steps, self.fraction, left, loss, tuple(dices), self.best_dice)

    def ended_by(self, stop: bool) -> str:
        if stop:
            return "stop"
        if self.num_without_gain >= self.settings.patience:
            return "patience"
        if self.num_steps >= self.settings.max_steps:
            return "steps"
        return "time" if self.seconds >= self.max_seconds else ""

    def finish(self, ended_by: str) -> FineTuned:
        set_parameters(self.network, self.best)
        merge_adapters(self.network.image_encoder.trunk)
        self.network.eval()
        return FineTuned(self.start_dice, self.best_dice, self.num_steps, self.seconds, ended_by)

    def _draw(self) -> tuple[tuple[Tensor, ...], Tensor, tuple[str, ...] | None]:
        """One record's trunk maps, some of its targets in the model frame, and their names if all are known."""
        for i in self.rng.permutation(len(self.records)):
            names, targets = self._targets(self.records[i])
            if names:
                known = self.network.known_texts
                named = all(names) and (known is None or all(n in known for n in names))
                maps = on_network(self.trunk_features(self.records[i].image), self.network)
                return maps, torch.from_numpy(targets).to(self.network.device), names if named else None
        raise DatasetError(f"every target is lost at {self.network.image_size} pixels")

    def _targets(self, record: Record) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and bool [B, S, S] of up to ``num_targets`` targets that something is left of."""
        masks = list(record.masks())
        chosen = self.rng.permutation(len(masks))[: self.settings.num_targets]
        frame = model_frame(self.network.name, self.network.image_size)
        targets = np.stack([frame.mask(masks[i][1]) for i in chosen])
        kept = np.flatnonzero(targets.any((1, 2)))
        return tuple(canonical_name(masks[chosen[k]][0]) for k in kept), targets[kept]

    def _score(self) -> float:
        began = time.monotonic()
        segmenter = TrunkFedSegmenter(self.network, self.trunk_features, self.network.device)
        scores = (evaluate(segmenter, self.validation, s, with_surface=False) for s in ("box", "click"))
        score = float(np.mean([mean_dice(of_strategy) for of_strategy in scores]))
        self.validation_seconds = max(self.validation_seconds, time.monotonic() - began)
        return score


def _check(records: Sequence[Record], validation: Sequence[Record]) -> None:
    for what, some in (("learn from", records), ("validate on", validation)):
        if not any(True for r in some for _ in r.masks()):
            raise DatasetError(f"no target to {what}: got {len(some)} records, expected at least one with a mask")
    check_patients(records, validation)


def _rate(step: int, done: float) -> float:
    """Share of the peak learning rate."""
    return min(1.0, step / WARMUP_STEPS) * (0.02 + 0.49 * (1 + float(np.cos(np.pi * done))))
