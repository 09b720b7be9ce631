"""The network behind a retraining: fine-tunes and answers on trunk features that are kept on disk, but for adapters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from imis_net.adapters.triton_trunk import RemoteOrOwn, TritonTrunk
from imis_net.checkpoint import TRUNK, load_weights, sha256, trunk_tensors
from imis_net.embedding_disk import EmbeddingDisk
from imis_net.evaluation.harness import Score
from imis_net.networks.build import BUILDERS
from imis_net.networks.imis_net import IMISNet
from imis_net.retraining.gate import TargetKey, answers, box_masks
from imis_net.retraining.trunk_store import TrunkStore
from imis_net.segmenter import trunk_digest
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuned, FineTuning, Progress, Unfinished, fine_tune, save_fine_tuned
from imis_net.training.trunk_features import OwnTrunk, TrunkFeatures, TrunkFedSegmenter

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Tuner:
    """``train`` and ``answers`` of a ``RetrainingCycle`` on one architecture.

    Attributes:
        model, architecture: a builder's name and arguments, as they are served.
        disk: where trunk features are kept between runs.
        trunk_url: a Triton server that has the trunk, "" where it runs here. Then the network is made without one, and
            gets one only if the server fails, or to train adapters in it.
        unfinished: where a training keeps its state, for one that goes on after it was killed; None keeps none.
        keep_every_s: how often it does so, at most.
        num_encoded: how often a trunk ran for maps that are kept, here or there; adapters' training keeps none.
    """

    model: str
    disk: EmbeddingDisk
    settings: FineTuning = field(default_factory=FineTuning)
    architecture: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    trunk_url: str = ""
    on_progress: Callable[[Progress], object] = lambda progress: None
    should_stop: Callable[[], bool] = lambda: False
    unfinished: Path | None = None
    keep_every_s: float = 60.0
    num_encoded: int = 0

    def train(
        self, start: Path, training: Sequence[Record], validation: Sequence[Record], candidate: Path
    ) -> FineTuned:
        network, features = (self._whole(start), None) if self.settings.adapter_rank else self._loaded(start)
        tuned = fine_tune(
            network,
            training,
            validation,
            self.settings,
            features,
            self.on_progress,
            self.should_stop,
            Unfinished(self.unfinished, sha256(start), self.keep_every_s) if self.unfinished else None,
        )
        self.num_encoded += features.num_encoded if features else 0
        save_fine_tuned(network, start, candidate, {"fine_tuned": "from labels of this deployment"})
        return tuned

    def answers(self, weights: Path, records: Sequence[Record]) -> list[Score]:
        return self._asked(weights, lambda segmenter: answers(segmenter, records))

    def box_masks(self, weights: Path, records: Sequence[Record]) -> dict[TargetKey, np.ndarray]:
        """bool [H, W] of each target, as ``gate.box_masks`` has them."""
        return self._asked(weights, lambda segmenter: box_masks(segmenter, records))

    def segmenter(self, weights: Path) -> TrunkFedSegmenter:
        """Some weights to ask, on the kept features."""
        return TrunkFedSegmenter(*self._loaded(weights), self.device)

    def _asked(self, weights: Path, ask: Callable[[TrunkFedSegmenter], T]) -> T:
        network, features = self._loaded(weights)
        answer = ask(TrunkFedSegmenter(network, features, self.device))
        self.num_encoded += features.num_encoded
        return answer

    def _whole(self, weights: Path) -> IMISNet:
        """The network with a trunk of its own, for adapters."""
        if self.trunk_url:
            log.warning("adapters change the trunk: it runs in this process, not on Triton at %s", self.trunk_url)
        return self._network(weights, with_trunk=True)

    def _loaded(self, weights: Path) -> tuple[IMISNet, TrunkStore]:
        """The network, without a trunk where a server has one, and the trunk's features."""
        network = self._network(weights, with_trunk=not self.trunk_url)
        digest = trunk_digest(network, trunk_tensors(weights))
        source: TrunkFeatures = OwnTrunk(network)
        if self.trunk_url:
            remote = TritonTrunk(self.trunk_url, network, digest)
            source = RemoteOrOwn(remote, lambda: OwnTrunk(self._network(weights, with_trunk=True)))
        return network, TrunkStore(source, self.disk, digest)

    def _network(self, weights: Path, with_trunk: bool) -> IMISNet:
        network = BUILDERS[self.model](**self.architecture, with_trunk=with_trunk)
        load_weights(network, weights, leave_out=None if with_trunk else TRUNK)
        return network.to(self.device).eval()
