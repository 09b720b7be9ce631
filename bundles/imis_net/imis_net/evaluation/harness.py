"""One fair protocol for every segmenter: the same simulated annotator, the same seeds, the same metrics."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from imis_net.metrics import dice, iou, surface_dice
from imis_net.prompts import Prompt
from imis_net.segmenter import Segmenter
from imis_net.simulation import correction_click, jittered_box, random_click
from imis_net.stepwise import StepwisePredictor
from imis_net.training.dataset import Record
from imis_net.training.sampler import canonical_name

STRATEGIES = ("click", "box", "text", "text+click", "box+click")


@dataclass(frozen=True)
class Score:
    """One target after one round (0 = the first prompt).

    ``target`` counts the record's targets; ``milliseconds`` is what the decoder took in this round.
    """

    case: str
    source: str
    modality: str
    label: str
    target: int
    strategy: str
    round: int
    num_pixels: int
    dice: float
    iou: float
    nsd: float
    iou_prediction: float
    milliseconds: float


Watch = Callable[[Score, np.ndarray, np.ndarray, np.ndarray, Prompt], None]


def evaluate(
    segmenter: Segmenter,
    records: Iterable[Record],
    strategy: str,
    num_rounds: int = 0,
    seed: int = 0,
    use_previous_mask: bool = False,
    min_pixels: int = 1,
    human_clicks: bool = False,
    closest_fraction: float = 1.0,
    max_offset_px: int = 5,
    watch: Watch | None = None,
    with_surface: bool = True,
    keep_clicks: bool = True,
) -> Iterator[Score]:
    """Score every target of at least ``min_pixels`` of every record after each of ``1 + num_rounds`` rounds.

    Each target has a generator of its own, seeded by its name, so that scores do not depend on what else is run.
    Targets whose text the segmenter does not know are left out of the text strategies. With ``human_clicks`` the first
    click falls on a person's scribble, and records without scribbles are left out: simulated clicks flatter.
    ``watch`` sees each score with its image, truth, mask and prompt. ``closest_fraction`` and ``max_offset_px`` are
    the first click's and the box's, as ``simulation`` has them. ``with_surface=False`` leaves ``nsd`` NaN: it takes
    as long as the decoder. With ``use_previous_mask`` prompts are answered as the app does, each part beside the mask
    of those before it (``stepwise``). Without ``keep_clicks`` a correction is its click alone, beside the previous mask
    where that is used, as the paper trains and IMIS-Bench tests.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    for record in records:
        if human_clicks and not record.scribbles:
            continue
        embedding = segmenter.encode_image(record.image)
        if use_previous_mask and keep_clicks:
            predict = partial(StepwisePredictor().predict, segmenter, embedding, record.case)
        else:
            predict = partial(segmenter.predict, embedding)
        for i, (name, truth) in enumerate(record.masks(min_pixels)):
            if "text" in strategy and not _knows(segmenter, name):
                continue
            rng = np.random.default_rng([seed, zlib.crc32(f"{record.case}|{i}|{name}".encode())])
            drawn = record.scribbles[rng.integers(len(record.scribbles))] if human_clicks else truth
            prompt = first_prompt(truth, canonical_name(name), strategy, rng, drawn, closest_fraction, max_offset_px)
            for round_index in range(num_rounds + 1):
                start = time.perf_counter()
                prediction = predict(prompt)
                elapsed_ms = 1000 * (time.perf_counter() - start)
                score = Score(
                    case=record.case,
                    source=record.source,
                    modality=record.modality,
                    label=name,
                    target=i,
                    strategy=strategy,
                    round=round_index,
                    num_pixels=int(truth.sum()),
                    dice=dice(prediction.mask, truth),
                    iou=iou(prediction.mask, truth),
                    nsd=surface_dice(prediction.mask, truth) if with_surface else float("nan"),
                    iou_prediction=prediction.iou_prediction,
                    milliseconds=elapsed_ms,
                )
                if watch is not None:
                    watch(score, record.image, truth, prediction.mask, prompt)
                yield score
                click = correction_click(prediction.mask, truth, rng)
                if click is not None and round_index < num_rounds:
                    before = prompt if keep_clicks else None
                    fed_back = prediction.low_res_mask if use_previous_mask and not keep_clicks else None
                    prompt = with_click(before, *click, fed_back)


def first_prompt(
    truth: np.ndarray,
    text: str,
    strategy: str,
    rng: np.random.Generator,
    clickable: np.ndarray | None = None,
    closest_fraction: float = 1.0,
    max_offset_px: int = 5,
) -> Prompt:
    """``clickable``: where the first click may fall, bool [H, W]; by default the target."""
    kinds = strategy.split("+")
    clickable = truth if clickable is None else clickable
    return Prompt(
        point_coords=random_click(clickable, rng, closest_fraction)[None] if "click" in kinds else None,
        point_labels=np.array([1]) if "click" in kinds else None,
        box=jittered_box(truth, rng, max_offset_px) if "box" in kinds else None,
        text=text if "text" in kinds else None,
    )


def mean_dice(scores: Iterable[Score], round_index: int = 0) -> float:
    return float(np.mean([s.dice for s in scores if s.round == round_index]))


def record_dices(segmenter: Segmenter, records: Iterable[Record]) -> np.ndarray:
    """Mean over targets of each record, by first clicks and first boxes: [R]."""

    def mean(record: Record) -> float:
        scores = [s for how in ("click", "box") for s in evaluate(segmenter, [record], how, with_surface=False)]
        return float(np.mean([s.dice for s in scores]))

    return np.array([mean(record) for record in records])


def with_click(prompt: Prompt | None, xy: np.ndarray, label: int, low_res_mask: np.ndarray | None) -> Prompt:
    """The prompt with one more click, and the mask so far where it is given; the click alone without a prompt."""
    coords, labels = xy[None], np.array([label])
    if prompt is None:
        return Prompt(coords, labels, low_res_mask=low_res_mask)
    if prompt.point_coords is not None and prompt.point_labels is not None:
        coords, labels = np.concatenate([prompt.point_coords, coords]), np.concatenate([prompt.point_labels, labels])
    return Prompt(coords, labels, prompt.box, prompt.text, low_res_mask)


def _knows(segmenter: Segmenter, name: str) -> bool:
    return segmenter.known_texts is None or canonical_name(name) in segmenter.known_texts
