"""The paper's examples: each image once an epoch, whole, with ground-truth targets and interactive masks beside them.

Which example comes when is a function of the seed and its position alone, so that a run can be taken up anywhere and
shared among processes. Source: IMIS-Net (arXiv 2411.12814), section 4.2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np

from imis_net.errors import DatasetError
from imis_net.networks.build import PATCH_PX
from imis_net.networks.imis_net import PIXEL_MEAN, PIXEL_STD
from imis_net.training.dataset import Record
from imis_net.training.regions import cleaned, interactive_map
from imis_net.training.sampler import Example, canonical_name
from imis_net.transforms import Frame

log = logging.getLogger(__name__)


@dataclass
class EpochSampler:
    """Draws the examples of one image by its place in the data order.

    Attributes:
        records: what to learn from; a record that cannot be read raises DatasetError when it is asked for.
        frame: what the network is served in; its side is S.
        num_targets: ground-truth targets of an image, and as many interactive masks, with replacement where there are
            fewer.
        known_texts: names that the network's text encoder has; None: any.
        intensity_probability: chance of a changed scale, and of a shift, of the normalised image by up to
            ``intensity_range``.
        num_skipped: images left out so far because they were broken or had no target; each is named in the log.
    """

    records: Sequence[Record]
    frame: Frame
    num_targets: int = 5
    num_interactive: int = 5
    known_texts: Sequence[str] | None = None
    intensity_probability: float = 0.2
    intensity_range: float = 0.2
    seed: int = 0
    num_skipped: int = field(default=0, init=False)

    def check(self) -> None:
        """Refuse settings and data that nothing can be learnt from.

        Raises:
            DatasetError: what is wrong.
        """
        if len(self.records) == 0:
            raise DatasetError("nothing to learn from: got no records")
        if self.frame.side % PATCH_PX:
            raise DatasetError(f"image_size: expected a multiple of {PATCH_PX}, got {self.frame.side}")

    def steps_per_epoch(self, num_images: int) -> int:
        return math.ceil(len(self.records) / num_images)

    def index_at(self, position: int) -> int:
        """Which record stands at this position of the data order; epochs are shuffled anew, each image once in each."""
        epoch, place = divmod(position, len(self.records))
        return int(_order(len(self.records), self.seed, epoch)[place])

    def draw_at(self, position: int, rng: np.random.Generator) -> list[Example]:
        """The examples of the image at this position, which share its pixels; none if it has to be skipped."""
        index = self.index_at(position)
        try:
            record = self.records[index]
        except DatasetError as error:
            return self._skipped(str(error))
        named = [(canonical_name(name), mask) for name, mask in record.masks()]
        targets = self._choose(named, self.num_targets, rng)
        if not targets:
            return self._skipped(f"{record.case}: no ground-truth target")
        image = self._intensity(self._resized(record.image), rng)
        height, width = self.frame.canvas((record.image.shape[0], record.image.shape[1]))
        pixel_size = self.frame.side / width, self.frame.side / height
        interactive = self._choose(self._interactive(record), self.num_interactive, rng)
        groups = [(targets, self._texts([name for name, _ in targets])), (interactive, None)]
        return [Example(image, np.stack([m for _, m in g]), texts, pixel_size) for g, texts in groups if g]

    def _interactive(self, record: Record) -> list[tuple[str, Callable[[], np.ndarray]]]:
        regions = interactive_map(record)
        counts = np.bincount(regions.ravel())
        return [("", partial(_cleaned_region, regions, v)) for v in np.flatnonzero(counts) if v]

    def _choose(
        self, masks: Sequence[tuple[str, np.ndarray | Callable[[], np.ndarray]]], number: int, rng: np.random.Generator
    ) -> list[tuple[str, np.ndarray]]:
        """``number`` of the masks that something is left of in the model frame, repeated where there are fewer."""
        chosen: list[tuple[str, np.ndarray]] = []
        for i in rng.permutation(len(masks)):
            if len(chosen) == number:
                break
            name, mask = masks[i]
            small = self._resized_mask(mask() if callable(mask) else mask)
            if small.any():
                chosen.append((name, small))
        if chosen:
            chosen += [chosen[i] for i in rng.integers(len(chosen), size=number - len(chosen))]
        return chosen

    def _texts(self, names: Sequence[str]) -> tuple[str, ...] | None:
        known = all(names) and (self.known_texts is None or all(n in self.known_texts for n in names))
        return tuple(names) if known else None

    def _resized(self, image: np.ndarray) -> np.ndarray:
        return self.frame.image(image)[0].permute(1, 2, 0).numpy()

    def _resized_mask(self, mask: np.ndarray) -> np.ndarray:
        """Masks are always resized by the nearest pixel: their border then lies where the image's does."""
        pixels = np.repeat(mask[..., None].astype(np.uint8), 3, axis=2)
        return replace(self.frame, resize="nearest").image(pixels)[0, 0].numpy() > 0

    def _intensity(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Scale and shift of the normalised image, on the 0..255 scale: float32 [S, S, 3] -> the same."""
        scale, shift = (
            rng.uniform(-self.intensity_range, self.intensity_range) * (rng.random() < self.intensity_probability)
            for _ in range(2)
        )
        mean, std = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
        return mean + (image - mean) * np.float32(1 + scale) + std * np.float32(shift)

    def _skipped(self, why: str) -> list[Example]:
        self.num_skipped += 1
        log.warning("skipped %s (%d so far)", why, self.num_skipped)
        return []


@lru_cache(maxsize=2)
def _order(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(number)


def _cleaned_region(regions: np.ndarray, value: int) -> np.ndarray:
    return cleaned(regions == value)
