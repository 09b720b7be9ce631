"""One fair protocol for every segmenter: the same simulated annotator, the same seeds, the same metrics."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from imis_net.metrics import dice
from imis_net.prompts import Prompt
from imis_net.segmenter import Segmenter
from imis_net.simulation import correction_click, jittered_box, random_click
from imis_net.training.dataset import Record
from imis_net.training.sampler import canonical_name

STRATEGIES = ("click", "box", "text", "text+click", "box+click")


@dataclass(frozen=True)
class Score:
    """One target after one round (0 = the first prompt)."""

    case: str
    source: str
    modality: str
    label: str
    strategy: str
    round: int
    num_pixels: int
    dice: float
    iou_prediction: float


def evaluate(
    segmenter: Segmenter,
    records: Iterable[Record],
    strategy: str,
    num_rounds: int = 0,
    seed: int = 0,
    use_previous_mask: bool = False,
    min_pixels: int = 1,
) -> Iterator[Score]:
    """Score every target of at least ``min_pixels`` of every record after each of ``1 + num_rounds`` rounds.

    Each target has a generator of its own, seeded by its name, so that scores do not depend on what else is run.
    Targets whose text the segmenter does not know are left out of the text strategies.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    for record in records:
        embedding = segmenter.encode_image(record.image)
        for i, (name, truth) in enumerate(record.masks(min_pixels)):
            if "text" in strategy and not _knows(segmenter, name):
                continue
            rng = np.random.default_rng([seed, zlib.crc32(f"{record.case}|{i}|{name}".encode())])
            prompt = first_prompt(truth, canonical_name(name), strategy, rng)
            for round_index in range(num_rounds + 1):
                prediction = segmenter.predict(embedding, prompt)
                yield Score(
                    record.case,
                    record.source,
                    record.modality,
                    name,
                    strategy,
                    round_index,
                    int(truth.sum()),
                    dice(prediction.mask, truth),
                    prediction.iou_prediction,
                )
                click = correction_click(prediction.mask, truth, rng)
                if click is not None and round_index < num_rounds:
                    prompt = _with_click(prompt, *click, prediction.low_res_mask if use_previous_mask else None)


def first_prompt(truth: np.ndarray, text: str, strategy: str, rng: np.random.Generator) -> Prompt:
    kinds = strategy.split("+")
    return Prompt(
        point_coords=random_click(truth, rng)[None] if "click" in kinds else None,
        point_labels=np.array([1]) if "click" in kinds else None,
        box=jittered_box(truth, rng) if "box" in kinds else None,
        text=text if "text" in kinds else None,
    )


def mean_dice(scores: Iterable[Score], round_index: int = 0) -> float:
    return float(np.mean([s.dice for s in scores if s.round == round_index]))


def _with_click(prompt: Prompt, xy: np.ndarray, label: int, low_res_mask: np.ndarray | None) -> Prompt:
    coords, labels = xy[None], np.array([label])
    if prompt.point_coords is not None and prompt.point_labels is not None:
        coords, labels = np.concatenate([prompt.point_coords, coords]), np.concatenate([prompt.point_labels, labels])
    return Prompt(coords, labels, prompt.box, prompt.text, low_res_mask)


def _knows(segmenter: Segmenter, name: str) -> bool:
    return segmenter.known_texts is None or canonical_name(name) in segmenter.known_texts
