"""What a training step reads: its images by their place in the data order, ready to share decoder calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imis_net.training.epoch_sampler import EpochSampler
from imis_net.training.grounding import Coverage
from imis_net.training.sampler import Example, Sampler


@dataclass(frozen=True)
class BatchedExample:
    """An example's rows among a batch's targets, and what it says of them.

    Attributes:
        image: index of its image in the batch.
        share: of its image, which all examples of one share alike.
        rows: of ``Batch.targets``.
        texts, pixel_size: see ``Example``.
    """

    image: int
    share: float
    rows: slice
    texts: tuple[str, ...] | None
    pixel_size: tuple[float, float]

    @property
    def number(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass(frozen=True, eq=False)
class Batch:
    """A step's images as a reading process hands them over: what is large lies in two tensors, which go from process to
    process without a copy.

    Attributes:
        positions: of each image in the data order.
        images: uint8 or float32 [I, S, S, 3] on 0..255.
        targets: bool [T, S, S], all examples' in turn.
        examples: which targets belong together.
        coverages: each image's.
    """

    positions: Sequence[int]
    images: Tensor
    targets: Tensor
    examples: Sequence[BatchedExample]
    coverages: Sequence[Coverage]

    @classmethod
    def of(cls, drawn: Sequence[tuple[int, Sequence[Example]]]) -> Batch | None:
        """Of (position, examples that share the image); images without an example are left out, None if all are."""
        drawn = [(position, examples) for position, examples in drawn if examples]
        if not drawn:
            return None
        examples, start = [], 0
        for i, (_, of_image) in enumerate(drawn):
            for example in of_image:
                rows = slice(start, start + len(example.targets))
                examples.append(BatchedExample(i, 1 / len(of_image), rows, example.texts, example.pixel_size))
                start = rows.stop
        return cls(
            positions=[position for position, _ in drawn],
            images=torch.from_numpy(np.stack([of_image[0].image for _, of_image in drawn])),
            targets=torch.from_numpy(np.concatenate([e.targets for _, of_image in drawn for e in of_image])),
            examples=examples,
            coverages=[of_image[0].coverage for _, of_image in drawn],
        )

    def calls(self, limit: int) -> Iterator[list[BatchedExample]]:
        """The examples by decoder call, at most ``limit`` in one.

        Examples share a call if all or none of them have texts and they have equally many targets.
        """
        alike: dict[tuple[bool, int], list[BatchedExample]] = {}
        for example in self.examples:
            waiting = alike.setdefault((example.texts is None, example.number), [])
            waiting.append(example)
            if len(waiting) == limit:
                yield list(waiting)
                waiting.clear()
        yield from (waiting for waiting in alike.values() if waiting)


def read_batches(
    sampler: Sampler | EpochSampler, seed: Sequence[int], steps: Iterable[list[int]], num_workers: int
) -> Iterator[Batch | None]:
    """The batch of each step, read ahead by ``num_workers`` processes; what is drawn at a position depends on it and
    the seed alone.

    Args:
        steps: each step's positions in the data order.
    """
    dataset = _Positions(sampler, seed)
    # The loader draws a seed for its workers; it shall not move the training's own generator.
    loader = DataLoader(
        dataset, batch_sampler=steps, collate_fn=Batch.of, num_workers=num_workers, generator=torch.Generator()
    )
    return iter(loader)


@dataclass
class _Positions(Dataset):
    """A data order as a data set whose indices are positions."""

    sampler: Sampler | EpochSampler
    seed: Sequence[int]

    def __getitem__(self, position: int) -> tuple[int, list[Example]]:
        rng = np.random.default_rng([*self.seed, position, 0])
        if isinstance(self.sampler, EpochSampler):
            return position, self.sampler.draw_at(position, rng)
        return position, [self.sampler.draw(rng)]
