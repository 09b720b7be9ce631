"""Sources in, files and records out: three stages that a laptop runs one after the other and a cluster side by side.

    read (CPU) -> propose (a model) -> write (CPU)

Each image is worked on alone, in a fixed order of sums and on one thread, and its files depend on nothing else: so the
output is the same for any number of workers, and a run that was killed goes on where records are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imis_net.data_engine.candidates import Proposals, propose
from imis_net.data_engine.ingest import Reject, Sample, read_samples
from imis_net.data_engine.layout import FOLDERS, is_done, write_sample
from imis_net.data_engine.names import NamesTable
from imis_net.data_engine.quality_control import control
from imis_net.data_engine.semantics import guess_by_drawn
from imis_net.data_engine.settings import Settings
from imis_net.data_engine.sources import Source
from imis_net.errors import ImisError
from imis_net.segmenter import load_segmenter

Propose = Callable[[np.ndarray], Proposals]
Finished = Reject | str
"""What comes out at the end: why an image is not there, or the stem of one that is."""


@dataclass(frozen=True)
class Run:
    """Everything that a worker must know; small, so that it travels.

    Attributes:
        make_propose: makes the model's stage where it runs.
        digest: of the settings, the classes and the model; equal digests, equal output of equal images.
    """

    out: Path
    settings: Settings
    table: NamesTable
    classes: tuple[str, ...]
    make_propose: Callable[[], Propose]
    digest: str

    def read(self, source: Source) -> Iterator[Sample | Finished]:
        """What is still to do of a source, and what became of the rest."""
        for item in read_samples(source, self.table, self.settings.ingest):
            yield item.stem if isinstance(item, Sample) and is_done(self.out, item, self.digest) else item

    def write(self, sample: Sample, proposals: Proposals) -> Finished:
        outcome = control(proposals.candidates, sample.targets, self.settings.quality_control)
        about = (sample.source.modality, sample.source.origin)
        classes = {name: self.table.class_of(name, *about) for name in proposals.drawn}
        drawn = {classes[name] or name: mask for name, mask in proposals.drawn.items()}
        guesses = guess_by_drawn([m.mask for m in outcome.kept], drawn) if drawn else []
        try:
            write_sample(
                self.out,
                sample,
                outcome,
                guesses,
                proposals.num_removed,
                self.classes,
                self.digest,
                self.settings.ingest,
            )
        except OSError as error:
            return Reject(sample.stem, f"cannot be written: {error.strerror or error}")
        return sample.stem


@dataclass(frozen=True)
class SegmenterStage:
    """Makes the proposals of a model of ``networks.build``, or of Segment Anything where its name begins with sam_."""

    model: str
    weights: Path | None
    device: str
    settings: Settings

    def __call__(self) -> Propose:
        torch.set_num_threads(1)  # sums of several threads round differently from run to run
        settings = self.settings.candidates.of_model(self.model)
        if self.model.startswith("sam_"):
            from imis_net.data_engine.sam_candidates import SamProposer, load_sam

            return SamProposer(load_sam(self.model, self.weights, self.device), settings)
        segmenter = load_segmenter(self.model, self.weights, self.device)
        return lambda image: propose(segmenter, image, settings)

    def weights_digest(self) -> str:
        """
        Raises:
            CheckpointError: the model cannot be loaded; found out before any work is done.
        """
        if self.model.startswith("sam_"):
            self()
            assert self.weights is not None
            return hashlib.sha256(self.weights.read_bytes()).hexdigest()[:16]
        return load_segmenter(self.model, self.weights, self.device).weights_digest


def run_digest(settings: Settings, classes: tuple[str, ...], model: str) -> str:
    return hashlib.sha256(json.dumps([settings.digest, classes, model]).encode()).hexdigest()[:16]


def make_folders(out: Path) -> None:
    for name in FOLDERS:
        (out / name).mkdir(parents=True, exist_ok=True)


def run_here(run: Run, sources: Iterable[Source]) -> Iterator[tuple[str, Finished]]:
    """All stages in this process; yields (stem of the source, what became of one image) as soon as it is known."""
    propose_masks = run.make_propose()
    for source in sources:
        for item in run.read(source):
            yield source.stem, _one(run, item, propose_masks)


def _one(run: Run, item: Sample | Finished, propose_masks: Propose) -> Finished:
    if not isinstance(item, Sample):
        return item
    return finish(run, item, proposals_or_reject(item, propose_masks))


def proposals_or_reject(sample: Sample, propose_masks: Propose) -> Proposals | Reject:
    try:
        return propose_masks(sample.image)
    except (ImisError, RuntimeError) as error:
        return Reject(sample.stem, f"no masks: {str(error).splitlines()[0][:200]}")


def finish(run: Run, sample: Sample, found: Proposals | Reject) -> Finished:
    return found if isinstance(found, Reject) else run.write(sample, found)
