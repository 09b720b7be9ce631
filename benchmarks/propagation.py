"""Propagation through labelled volumes: one prompted slice in ten against a box on every slice, cost and memory.

.venv/bin/python benchmarks/propagation.py [--data ../shared/data/dev]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundles" / "imis_net"))

import torch
from claims import Claim, report
from own_peak import own_peak_mb
from scipy import ndimage

from imis_net.embedding_cache import EmbeddingCache
from imis_net.images import Volume, read_volume
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.propagation import Embed, propagate
from imis_net.segmenter import TorchSegmenter, load_segmenter

SLICES_PER_PROMPT = 10
MAX_NUM_TARGETS = 2
CACHE_BYTES = 2 << 30
"""A volume's embeddings, so that its targets and both ways share them."""


@dataclass(frozen=True, eq=False)
class Target:
    """A labelled target: its volume, and its truth bool [I, J, K]."""

    case: str
    value: int
    volume: Volume
    truth: np.ndarray

    @property
    def slices(self) -> np.ndarray:
        return np.flatnonzero(self.truth.any((0, 1)))

    def box(self, index: int) -> Prompt:
        """What an annotator would draw on that slice."""
        columns, rows = (np.flatnonzero(self.truth[..., index].any(axis)) for axis in (1, 0))
        return Prompt(box=np.array([columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "dev")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if not (args.data / "index.json").is_file():
        print(f"no labelled volumes: expected {args.data}/index.json", file=sys.stderr)
        sys.exit(2)
    if args.threads:
        torch.set_num_threads(args.threads)
    segmenter = load_segmenter()
    sys.exit(report("propagation", chain(_cost(segmenter), _accuracy(segmenter, args.data))))


def _accuracy(segmenter: TorchSegmenter, data: Path) -> Iterator[Claim]:
    scores: dict[str, list[tuple[float, float]]] = {"two prompts or more": [], "one prompt": []}
    embed = _cached(segmenter)
    for target in _targets(data):
        each = _per_slice(segmenter, embed, target)
        anchors = _anchors(target)
        found = propagate(target.volume, anchors, segmenter, embed).mask
        pair = _dice(found, target.truth), _dice(each, target.truth)
        scores["one prompt" if len(anchors) == 1 else "two prompts or more"].append(pair)
        print(f"  {target.case} {target.value}: {len(target.slices)}, {pair[0]:.3f} of {pair[1]:.3f}", flush=True)
    yield _claim(scores)


def _claim(scores: Mapping[str, Sequence[tuple[float, float]]]) -> Claim:
    (ours, theirs), ratio = _means(list(chain.from_iterable(scores.values())))
    parts = [f"{_means(pairs)[1]:.3f} for the {len(pairs)} of {name}" for name, pairs in scores.items() if pairs]
    name = f"Dice with one slice in ten prompted / of a box on each, {sum(map(len, scores.values()))} targets"
    return Claim(name, ratio, 0.95, beside=f"{ours:.3f} of {theirs:.3f}; {', '.join(parts)}")


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[np.ndarray, float]:
    """Mean Dice of the two, and the first's share of the second."""
    means = np.mean(pairs, axis=0) if pairs else np.full(2, np.nan)
    return means, float(means[0] / means[1])


def _targets(data: Path) -> Iterator[Target]:
    """The largest targets of each volume, as the others are a few pixels wide on a slice; of each its largest connected
    part, as nothing leads from one part to another.
    """
    for case in json.loads((data / "index.json").read_text())["cases"]:
        if case["kind"] != "3d":
            continue
        volume, labels = read_volume(data / case["image"]), read_volume(data / case["label"]).array
        values, counts = np.unique(labels[labels > 0], return_counts=True)
        for value in values[np.argsort(-counts)][:MAX_NUM_TARGETS]:
            yield Target(case["id"], int(value), volume, _largest_part(labels == value))


def _largest_part(mask: np.ndarray) -> np.ndarray:
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _anchors(target: Target) -> Mapping[int, Prompt]:
    """The middle slice of each ten, of fewer where there are not ten."""
    tens = np.array_split(target.slices, max(1, len(target.slices) // SLICES_PER_PROMPT))
    return {int(k): target.box(int(k)) for k in (ten[len(ten) // 2] for ten in tens)}


def _per_slice(segmenter: TorchSegmenter, embed: Embed, target: Target) -> np.ndarray:
    mask = np.zeros(target.truth.shape, bool)
    for index in target.slices:
        image = target.volume.slice_rgb(int(index))
        mask[..., index] = segmenter.predict(embed(image), target.box(int(index))).mask.T
    return mask


def _cached(segmenter: TorchSegmenter) -> Embed:
    """Through the cache that the server has, so that a slice that was seen before costs the decoder alone."""
    cache = EmbeddingCache(CACHE_BYTES)

    def embed(image: np.ndarray) -> ImageEmbedding:
        return cache.get_or_encode(str(hash(image.tobytes())), lambda: segmenter.encode_image(image))[0]

    return embed


def _cost(segmenter: TorchSegmenter) -> Iterator[Claim]:
    """A bright cylinder in noise, 25 to 200 slices deep: what a slice more costs, and what stays in memory.

    Comes first: the peak of what follows would hide its own.
    """
    seconds, peaks_mb, depths = [], [], [25, 50, 100, 200]
    for depth in depths:
        volume = _cylinder(depth)
        start = time.perf_counter()
        found = propagate(volume, {depth // 2: Prompt(box=[90, 90, 166, 166])}, segmenter, segmenter.encode_image)
        seconds.append((time.perf_counter() - start) / len(found.iou_predictions))
        peaks_mb.append(own_peak_mb())
        print(f"  {depth} slices: {len(found.iou_predictions)} found, {seconds[-1] * 1e3:.0f} ms each", flush=True)
    yield Claim("time of a slice, 200 deep / 50 deep", seconds[3] / seconds[1], 1.25, at_least=False)
    own_mb = (200 - 50) * 256 * 256 * 3 / 2**20  # the volume and its mask are larger, which is not ours to spare
    yield Claim("MB more at the peak, 200 deep - 50 deep", peaks_mb[3] - peaks_mb[1], own_mb + 100, at_least=False)


def _cylinder(depth: int) -> Volume:
    y, x = np.mgrid[:256, :256]
    plane = np.where((x - 128) ** 2 + (y - 128) ** 2 < 38**2, 150, 0)
    noise = np.random.default_rng(0).normal(0, 10, (256, 256))
    body = np.repeat((plane + noise).astype(np.int16)[..., None], depth, axis=2)
    return Volume(body, np.diag([1.0, 1.0, 2.0, 1.0]))


def _dice(mask: np.ndarray, truth: np.ndarray) -> float:
    total = int(mask.sum()) + int(truth.sum())
    return 2 * float(np.count_nonzero(mask & truth)) / total if total else 1.0


if __name__ == "__main__":
    main()
