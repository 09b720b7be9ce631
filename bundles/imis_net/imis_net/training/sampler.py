"""Turns records into training examples: a view, its targets, and where allowed their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from skimage.segmentation import felzenszwalb

from imis_net.errors import DatasetError
from imis_net.training.augmentation import (
    View,
    random_intensity,
    random_view,
    resize_image,
    resize_labels,
    resize_mask,
    synthetic_contrast,
)
from imis_net.training.dataset import Record

WIDE_SCALES = (0.9, 1.15)
MAX_NUM_TRIES = 1000


@dataclass(frozen=True, eq=False)
class Example:
    """image float32 [S, S, 3] on 0..255; targets bool [B, S, S]; the targets' names or None where one has none."""

    image: np.ndarray
    targets: np.ndarray
    texts: tuple[str, ...] | None


@dataclass
class Sampler:
    """Draws examples without end.

    Attributes:
        records: what to draw from; ``weights`` maps a part of a source's name to a multiple of its share.
        image_size: S.
        num_targets: B targets of each image, with replacement where there are fewer.
        known_texts: names that the network's text encoder has.
        region_probability: share of examples whose targets are unnamed regions of equal appearance, the stand-in
            for dense interactive masks where there are none.
        synthetic_probability: share of examples repainted from their label map.
        min_scale, max_scale: a view's side relative to the image's longer side.
        wide_probability: share of views of the whole image, unflipped: where an organ lies is half of its name.
    """

    records: Sequence[Record]
    image_size: int
    num_targets: int
    known_texts: Collection[str]
    weights: dict[str, float] = field(default_factory=dict)
    region_probability: float = 0.2
    synthetic_probability: float = 0.1
    min_scale: float = 0.7
    max_scale: float = 1.25
    flip_probability: float = 0.5
    wide_probability: float = 0.0
    min_pixels: int = 24

    def __post_init__(self) -> None:
        share = np.array([self._weight(r) for r in self.records], float)
        if not share.sum() > 0:
            raise DatasetError(f"nothing to draw from: {len(self.records)} records, none with a weight above 0")
        self._shares = share / share.sum()
        self._regions: dict[Record, np.ndarray] = {}

    def draw(self, rng: np.random.Generator) -> Example:
        """One example; tries again where a view cut all targets away.

        Raises:
            DatasetError: no record gives a target, however often one tries.
        """
        for _ in range(MAX_NUM_TRIES):
            record = self.records[rng.choice(len(self.records), p=self._shares)]
            example = self._from_record(record, rng)
            if example is not None:
                return example
        raise DatasetError(f"no target in {MAX_NUM_TRIES} views of {len(self.records)} records")

    def _weight(self, record: Record) -> float:
        return next((w for part, w in self.weights.items() if part in record.source), 1.0)

    def _from_record(self, record: Record, rng: np.random.Generator) -> Example | None:
        use_regions = not record.targets or rng.random() < self.region_probability
        maps = ((self._region_map(record), {}),) if use_regions else record.targets
        focus_map, _ = maps[rng.integers(len(maps))]
        values = np.unique(focus_map)
        values = values[values > 0]
        if len(values) == 0:
            return None
        view = self._view(record.image.shape, focus_map == rng.choice(values), rng)
        image = resize_image(view.apply(record.image), self.image_size)
        views = [(view.apply(label_map), names) for label_map, names in maps]
        named = [(crop, int(v), names.get(int(v), "")) for crop, names in views for v in self._large_enough(crop)]
        if not named:
            return None
        if rng.random() < self.synthetic_probability:
            image = synthetic_contrast(resize_labels(views[rng.integers(len(views))][0], self.image_size), image, rng)
        chosen = [named[i] for i in _choose(len(named), self.num_targets, rng)]
        targets = np.stack([resize_mask(crop == value, self.image_size) for crop, value, _ in chosen])
        if not targets.any((1, 2)).all():
            return None
        texts = tuple(canonical_name(name) for _, _, name in chosen)
        has_texts = view.keeps_sides and all(t in self.known_texts for t in texts)
        return Example(random_intensity(image, rng), targets, texts if has_texts else None)

    def _view(self, shape: tuple[int, ...], focus: np.ndarray, rng: np.random.Generator) -> View:
        if rng.random() < self.wide_probability:
            return random_view(shape, focus, *WIDE_SCALES, 0.0, rng)
        return random_view(shape, focus, self.min_scale, self.max_scale, self.flip_probability, rng)

    def _large_enough(self, label_map: np.ndarray) -> np.ndarray:
        """Values with at least ``min_pixels`` pixels once the map is brought to S x S."""
        counts = np.bincount(label_map.ravel())
        counts[0] = 0
        return np.flatnonzero(counts * (self.image_size**2 / label_map.size) >= self.min_pixels)

    def _region_map(self, record: Record) -> np.ndarray:
        """Regions of equal appearance, uint16 [H, W], made once per record; regions of background are dropped."""
        if record not in self._regions:
            size = max(record.image.shape[:2])
            grey = record.image.mean(-1) / 255
            regions = felzenszwalb(grey, scale=size / 4, sigma=1.0, min_size=size // 6).astype(np.uint16) + 1
            counts = np.bincount(regions.ravel())
            brightness = np.bincount(regions.ravel(), weights=grey.ravel()) / np.maximum(counts, 1)
            drop = np.flatnonzero((counts > 0.5 * regions.size) | (brightness < 0.03))
            regions[np.isin(regions, drop)] = 0
            self._regions[record] = regions
        return self._regions[record]


def canonical_name(name: str) -> str:
    """A data set's label as the categories spell it: "kidney right" -> "right kidney"."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    side = [w for w in words if w in ("left", "right")]
    if len(side) == 1 and words[-1] in ("left", "right"):
        words = [words[-1], *words[:-1]]
    return " ".join(words)


def _choose(num_available: int, num_wanted: int, rng: np.random.Generator) -> np.ndarray:
    if num_available >= num_wanted:
        return rng.choice(num_available, num_wanted, replace=False)
    return np.concatenate([np.arange(num_available), rng.integers(num_available, size=num_wanted - num_available)])
