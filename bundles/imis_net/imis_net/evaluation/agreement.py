"""Whether another build of a network answers as it does in float32: the same prompts on real images, mask by mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from imis_net.errors import ExportError
from imis_net.evaluation.harness import STRATEGIES, first_prompt, with_click
from imis_net.metrics import iou
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import Segmenter
from imis_net.simulation import correction_click
from imis_net.training.regions import appearance_regions

MIN_MEAN_IOU, MIN_IOU, MAX_IOU_ERROR = 0.995, 0.98, 0.02
MIN_PIXELS = 100
"""A target of fewer is not asked for: a pixel of its border would be two percent."""
MAX_REGIONS = 24
"""Of one image, so that several are looked at."""


@dataclass(frozen=True)
class Agreement:
    """Of the masks of two segmenters.

    Attributes:
        mean_iou, worst_iou: of the masks; 1 where both are empty.
        iou_error: largest difference of the predicted IoU.
    """

    num_prompts: int
    mean_iou: float
    worst_iou: float
    iou_error: float

    @property
    def is_close(self) -> bool:
        return self.mean_iou >= MIN_MEAN_IOU and self.worst_iou >= MIN_IOU and self.iou_error <= MAX_IOU_ERROR

    def __str__(self) -> str:
        return (
            f"{self.num_prompts} prompts: mean IoU {self.mean_iou:.4f} (at least {MIN_MEAN_IOU}), worst "
            f"{self.worst_iou:.3f} (at least {MIN_IOU}), predicted IoU differs by {self.iou_error:.3f} "
            f"(at most {MAX_IOU_ERROR})"
        )


def compare(reference: Segmenter, other: Segmenter, images: Iterable[np.ndarray], num_prompts: int) -> Agreement:
    """Ask both about at least ``num_prompts`` clicks, boxes, names and corrections on uint8 [H, W, 3] images.

    Raises:
        ExportError: the images have too few regions for so many prompts.
    """
    overlaps: list[float] = []
    errors: list[float] = []
    rng = np.random.default_rng(0)
    for image in images:
        ours, theirs = reference.encode_image(image), other.encode_image(image)
        prompts = _prompts(reference, ours, image, rng, min(MAX_REGIONS, num_prompts))
        answers = other.predict_batch(theirs, prompts), reference.predict_batch(ours, prompts)
        for got, want in zip(*answers, strict=True):
            overlaps.append(iou(got.mask, want.mask))
            errors.append(abs(got.iou_prediction - want.iou_prediction))
        if len(overlaps) >= num_prompts:
            return Agreement(len(overlaps), float(np.mean(overlaps)), min(overlaps), max(errors))
    raise ExportError(f"the images have regions for {len(overlaps)} prompts, {num_prompts} are needed")


def _prompts(
    segmenter: Segmenter, embedding: ImageEmbedding, image: np.ndarray, rng: np.random.Generator, limit: int
) -> list[Prompt]:
    """One of every kind for each of ``limit`` regions of the image, and a second click on each clicked mask."""
    names = ("liver", "spleen") if segmenter.known_texts is None else segmenter.known_texts
    strategies = STRATEGIES if names else [s for s in STRATEGIES if "text" not in s]
    prompts: list[Prompt] = []
    clicked: list[tuple[Prompt, np.ndarray]] = []
    for i, truth in enumerate(_regions(image, rng, limit)):
        for strategy in strategies:  # any name will do: not what it means is asked, but whether both say the same
            prompts.append(first_prompt(truth, names[i % len(names)] if names else "", strategy, rng, truth))
            if strategy == "click":
                clicked.append((prompts[-1], truth))
    predictions = segmenter.predict_batch(embedding, [prompt for prompt, _ in clicked])
    for (prompt, truth), prediction in zip(clicked, predictions, strict=True):
        found = correction_click(prediction.mask, truth, rng)
        if found is not None:
            prompts.append(with_click(prompt, *found, prediction.low_res_mask))
    return prompts


def _regions(image: np.ndarray, rng: np.random.Generator, limit: int) -> Iterator[np.ndarray]:
    regions = appearance_regions(image)
    large = np.flatnonzero(np.bincount(regions.ravel()) >= MIN_PIXELS)
    return (regions == value for value in rng.permutation(large[large > 0])[:limit])
