"""Validation during training: the benchmark's protocol on the weights that would be served, with a fixed seed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from imis_net.errors import DatasetError, ImisError
from imis_net.evaluation.harness import evaluate
from imis_net.segmenter import BUNDLE_DIR, Segmenter, load_segmenter
from imis_net.training.dataset import Record
from imis_net.training.distributed import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """What is scored after each epoch; its values stand in configs/evaluate.yaml.

    Attributes:
        strategies: first prompts, all with ``num_rounds`` corrections; the mean Dice after each round is reported.
        chosen_by: the strategies whose mean over rounds decides which weights are kept.
        min_pixels: smaller targets are left out.
        max_records: at most so many records, the first ones; None: all.
    """

    strategies: Sequence[str] = ("box", "click", "text")
    num_rounds: int = 0
    chosen_by: Sequence[str] = ("box", "click")
    seed: int = 0
    use_previous_mask: bool = False
    min_pixels: int = 1
    max_records: int | None = None

    def scores(self, segmenter: Segmenter, records: Sequence[Record], world: World) -> dict[str, float]:
        """Mean Dice by "strategy" (round 0) and "strategy_round"; a strategy that can prompt nothing is left out."""
        shape = (len(self.strategies), self.num_rounds + 1)
        sums, counts = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        share = range(world.rank, min(len(records), self.max_records or len(records)), world.size)
        for i, strategy in enumerate(self.strategies):
            usable = readable(records, share)
            for score in evaluate(
                segmenter,
                usable,
                strategy,
                self.num_rounds,
                self.seed,
                self.use_previous_mask,
                self.min_pixels,
                with_surface=False,
            ):
                sums[i, score.round] += score.dice
                counts[i, score.round] += 1
        total, number = (world.sum(v.to(world.device)).cpu() for v in (sums, counts))
        return {
            strategy if r == 0 else f"{strategy}_{r}": float(total[i, r] / number[i, r])
            for i, strategy in enumerate(self.strategies)
            for r in range(self.num_rounds + 1)
            if number[i, r]
        }

    def choice(self, scores: dict[str, float]) -> float:
        """The score by which weights are kept."""
        chosen = [v for k, v in scores.items() if k.split("_")[0] in self.chosen_by]
        return sum(chosen) / len(chosen)

    def check(self, records: Sequence[Record]) -> None:
        """Refuse records in which nothing can be scored.

        Raises:
            DatasetError: no target.
        """
        if not any(True for r in readable(records, range(len(records))) for _ in r.masks(self.min_pixels)):
            raise DatasetError(f"no target to validate on: {len(records)} validation records")


def readable(records: Sequence[Record], indices: Iterable[int]) -> Iterator[Record]:
    """Those of the records that can be read; the others are named in the log."""
    for i in indices:
        try:
            record = records[i]
        except DatasetError as error:
            log.warning("skipped %s", error)
            continue
        yield record


def read_protocol(path: Path = BUNDLE_DIR / "configs" / "evaluate.yaml") -> Protocol:
    """The protocol of configs/evaluate.yaml, its one owner."""
    parser = ConfigParser(ConfigParser.load_config_file(path))
    protocol: Protocol = parser.get_parsed_content("protocol")
    return protocol


@dataclass(frozen=True)
class Evaluation:
    """The protocol as a command of its own: configs/evaluate.yaml."""

    protocol: Protocol
    records: Sequence[Record]
    model: str
    weights: str | None
    device: str = "cpu"

    def main(self) -> dict[str, float]:
        """Print and return the scores; input that cannot be used is one sentence and exit status 2."""
        try:
            self.protocol.check(self.records)
            segmenter = load_segmenter(self.model, self.weights, self.device)
        except ImisError as error:
            print(f"evaluate: {error}", file=sys.stderr)
            sys.exit(2)
        scores = self.protocol.scores(segmenter, self.records, World())
        print(json.dumps(scores, indent=2))
        return scores
