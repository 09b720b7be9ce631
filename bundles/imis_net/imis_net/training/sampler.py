"""Turns records into training examples: a view, its targets, and where allowed their names."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from imis_net.errors import DatasetError
from imis_net.training.augmentation import (
    View,
    random_intensity,
    random_view,
    random_warp,
    resize_image,
    resize_labels,
    synthetic_contrast,
    warp_image,
    warp_labels,
)
from imis_net.training.dataset import Record
from imis_net.training.grounding import Coverage, coverage
from imis_net.training.regions import intensity_classes, interactive_map
from imis_net.training.scenes import SOURCE, random_scene
from imis_net.transforms import Frame

MIN_COARSE_SIDE = 40
WIDE_SCALES = (0.9, 1.15)
MAX_NUM_TRIES = 1000


@dataclass(frozen=True, eq=False)
class Example:
    """What one training step sees of one image.

    Attributes:
        image: uint8 or float32 [S, S, 3] on 0..255.
        targets: bool [B, S, S].
        texts: the targets' names, or None where one has none.
        pixel_size: width and height of the original image's pixels in the model frame; annotators miss by those.
        coverage: what each name that is known covers of the view, whether it is a target or not; empty where the
            view or its painting leaves no name true.
    """

    image: np.ndarray
    targets: np.ndarray
    texts: tuple[str, ...] | None
    pixel_size: tuple[float, float] = (1.0, 1.0)
    coverage: Coverage = field(default_factory=dict)


@dataclass
class Sampler:
    """Draws examples without end.

    Attributes:
        records: what to draw from; ``weights`` maps a part of a source's name to a multiple of its share.
        image_size: S.
        num_targets: B targets of each image, with replacement where there are fewer.
        known_texts: names that the network's text encoder has.
        region_probability: share of examples whose targets are unnamed: dense interactive masks, or regions of equal
            appearance, which stand in for them where there are none.
        tissue_probability: share of those whose targets are classes of brightness, in many pieces each.
        synthetic_probability: share of examples repainted from their label map.
        min_scale, max_scale: a view's side relative to the image's longer side.
        wide_probability: share of views of the whole image, unflipped: where an organ lies is half of its name.
        coarse_probability: share of examples seen as an image of fewer pixels than S x S, where an annotator's few
            pixels are much of a target.
        stretch_probability: share of views that are not square.
        scene_probability: share of drawn scenes.
        warp_probability: share of views that are turned, stretched and bent a little.
        complete: parts of sources' names in which every image is labelled completely, so that what another image of
            the source has and this one lacks is absent from it.
        max_enlargement: see ``Frame``; what the network is served with.
    """

    records: Sequence[Record]
    image_size: int
    num_targets: int
    known_texts: Collection[str]
    weights: dict[str, float] = field(default_factory=dict)
    region_probability: float = 0.2
    tissue_probability: float = 0.0
    synthetic_probability: float = 0.1
    min_scale: float = 0.7
    max_scale: float = 1.25
    flip_probability: float = 0.5
    wide_probability: float = 0.0
    coarse_probability: float = 0.0
    stretch_probability: float = 0.0
    scene_probability: float = 0.0
    warp_probability: float = 0.0
    complete: Sequence[str] = ()
    min_pixels: int = 24
    max_enlargement: float = math.inf

    def __post_init__(self) -> None:
        share = np.array([self._weight(r) for r in self.records], float)
        if not share.sum() > 0:
            raise DatasetError(f"nothing to draw from: {len(self.records)} records, none with a weight above 0")
        self._shares = share / share.sum()
        self._frame = Frame(self.image_size, "bilinear", self.max_enlargement)
        self._regions: dict[tuple[Record, int], np.ndarray] = {}
        self._vocabularies = {part: self._vocabulary(part) for part in self.complete}

    def draw(self, rng: np.random.Generator) -> Example:
        """One example; tries again where a view cut all targets away.

        Raises:
            DatasetError: no record gives a target, however often one tries.
        """
        for _ in range(MAX_NUM_TRIES):
            example = self._from_record(self._record(rng), rng)
            if example is not None:
                return example
        raise DatasetError(f"no target in {MAX_NUM_TRIES} views of {len(self.records)} records")

    def _record(self, rng: np.random.Generator) -> Record:
        if rng.random() < self.scene_probability:
            return random_scene(rng)
        return self.records[rng.choice(len(self.records), p=self._shares)]

    def _weight(self, record: Record) -> float:
        return next((w for part, w in self.weights.items() if part in record.source), 1.0)

    def _from_record(self, record: Record, rng: np.random.Generator) -> Example | None:
        use_regions = not record.targets or rng.random() < self._region_share(record)
        maps = ((self._region_map(record, self._num_tissues(rng)), {}),) if use_regions else record.targets
        focus_map, _ = maps[rng.integers(len(maps))]
        values = _values(focus_map)
        if len(values) == 0:
            return None
        view = self._view(record.image.shape, focus_map == rng.choice(values), rng)
        image, views = view.apply(record.image), [(view.apply(label_map), names) for label_map, names in maps]
        if rng.random() < self.warp_probability:
            warp = random_warp(image.shape[0], image.shape[1], rng)
            image = warp_image(image, warp)
            views = [(warp_labels(label_map, warp), names) for label_map, names in views]
        rows, columns = self._resolution(rng)
        if rows < image.shape[0] or columns < image.shape[1]:
            smaller = min(rows, image.shape[0]), min(columns, image.shape[1])
            image = resize_image(image, *smaller)
            views = [(resize_labels(label_map, *smaller), names) for label_map, names in views]
        canvas_rows, canvas_columns = self._frame.canvas((rows, columns))
        height, width = round(image.shape[0] * canvas_rows / rows), round(image.shape[1] * canvas_columns / columns)
        canvas = View(0, 0, height, width)
        image = resize_image(canvas.apply(image), self.image_size, self.image_size)
        views = [(canvas.apply(label_map), names) for label_map, names in views]
        pixel_size = self.image_size / canvas_columns, self.image_size / canvas_rows
        named = [
            (crop, int(v), names.get(int(v), ""))
            for crop, names in views
            for v in self._large_enough(crop, canvas_rows * canvas_columns)
        ]
        if not named:
            return None
        is_repainted = rng.random() < self.synthetic_probability
        if is_repainted:
            label_map = resize_labels(views[rng.integers(len(views))][0], self.image_size, self.image_size)
            image = synthetic_contrast(label_map, image, rng)
        chosen = [named[i] for i in _choose(len(named), self.num_targets, rng)]
        targets = np.stack([Frame(self.image_size).mask(crop == value) for crop, value, _ in chosen])
        if not targets.any((1, 2)).all():
            return None
        texts = tuple(canonical_name(name) for _, _, name in chosen)
        has_texts = view.keeps_sides and all(t in self.known_texts for t in texts)
        names_hold = view.keeps_sides and not is_repainted and not use_regions
        covered = self._coverage(views, record.source) if names_hold else {}
        return Example(random_intensity(image, rng), targets, texts if has_texts else None, pixel_size, covered)

    def _vocabulary(self, part: str) -> list[str]:
        records = [r for r in self.records if part in r.source]
        names = {canonical_name(n) for r in records for _, names in r.targets for n in names.values()}
        return sorted(names & set(self.known_texts))

    def _coverage(self, views: Sequence[tuple[np.ndarray, dict[int, str]]], source: str) -> Coverage:
        masks: dict[str, np.ndarray] = {}
        for crop, names in views:
            for value in _values(crop):
                name = canonical_name(names.get(int(value), ""))
                if name in self.known_texts:
                    mask = crop == value
                    masks[name] = masks[name] | mask if name in masks else mask
        absent = [n for part, known in self._vocabularies.items() if part in source for n in known]
        return coverage(masks, absent, self.image_size)

    def _region_share(self, record: Record) -> float:
        return self.region_probability if record.source != SOURCE else 0.0

    def _view(self, shape: tuple[int, ...], focus: np.ndarray, rng: np.random.Generator) -> View:
        if rng.random() < self.wide_probability:
            return random_view(shape, focus, *WIDE_SCALES, 0.0, rng)
        scales = self.min_scale, self.max_scale
        return random_view(shape, focus, *scales, self.flip_probability, rng, self.stretch_probability)

    def _resolution(self, rng: np.random.Generator) -> tuple[int, int]:
        """Rows and columns of the image that the annotator is thought to see."""
        sides = [self.image_size, self.image_size]
        if rng.random() < self.coarse_probability:
            sides = [round(np.exp(rng.uniform(np.log(MIN_COARSE_SIDE), np.log(self.image_size))))] * 2
            if rng.random() < self.stretch_probability:
                i = rng.integers(2)
                sides[i] = max(MIN_COARSE_SIDE // 2, round(sides[i] * rng.uniform(0.15, 1.0)))
        return sides[0], sides[1]

    def _large_enough(self, label_map: np.ndarray, num_pixels: int) -> np.ndarray:
        """Values with at least ``min_pixels`` pixels in an image of ``num_pixels``."""
        counts = np.bincount(label_map.ravel())
        counts[0] = 0
        return np.flatnonzero(counts * (num_pixels / label_map.size) >= self.min_pixels)

    def _num_tissues(self, rng: np.random.Generator) -> int:
        """0 where regions of equal appearance are wanted."""
        return int(rng.integers(2, 5)) if rng.random() < self.tissue_probability else 0

    def _region_map(self, record: Record, num_tissues: int = 0) -> np.ndarray:
        """Unnamed targets of a record, made once for each number of tissues."""
        if (record, num_tissues) not in self._regions:
            self._regions[record, num_tissues] = _unnamed_targets(record, num_tissues)
        return self._regions[record, num_tissues]


def _unnamed_targets(record: Record, num_tissues: int) -> np.ndarray:
    try:
        return intensity_classes(record.image, num_tissues) if num_tissues else interactive_map(record)
    except ValueError:  # too few grey values for so many tissues
        return interactive_map(record)


def _values(label_map: np.ndarray) -> np.ndarray:
    """What stands in uint16 [H, W], but for 0."""
    return np.flatnonzero(np.bincount(label_map.ravel())[1:]) + 1


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
