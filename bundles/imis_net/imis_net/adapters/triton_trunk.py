"""A frozen trunk's maps from the encoder that a Triton server already holds, for a training without that trunk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from imis_net.adapters.triton_connection import TritonConnection
from imis_net.errors import ServingError
from imis_net.networks.imis_net import IMISNet
from imis_net.serving import tensors as names
from imis_net.serving.repository import ENCODER
from imis_net.training.trunk_features import TrunkFeatures, normalised

log = logging.getLogger(__name__)

PRIORITY = 2
"""Of the two levels in the encoder's config.pbtxt the one that waits for clicks."""
DEADLINE_S = 60.0
"""Nobody waits for a training, and its requests give way: a busy server is no failure."""


class TritonTrunk:
    """``TrunkFeatures`` from a server; every answer is known to be of the wanted trunk, and finite."""

    def __init__(self, url: str, network: IMISNet, trunk_digest: str, deadline_s: float = DEADLINE_S) -> None:
        """
        Args:
            network: whose frame and number of maps are asked for; it needs no trunk.
            trunk_digest: of the weights that the training starts from.
        """
        self.url, self.network, self.trunk_digest, self.deadline_s = url, network, trunk_digest, deadline_s
        self._connection = TritonConnection(url, use_shared_memory=False, model=ENCODER, priority=PRIORITY)

    def __call__(self, image: np.ndarray) -> tuple[Tensor, ...]:
        """
        Raises:
            ServingError: the server is not reached in time, fails, has another trunk or answers what cannot be right.
        """
        wanted = names.TRUNK[: self.network.image_encoder.num_trunk_maps]
        images = {names.IMAGES: normalised(image, self.network).cpu().numpy()}
        give_up_at = time.monotonic() + self.deadline_s
        answer = self._connection.infer(images, [*wanted, names.TRUNK_DIGEST], give_up_at)
        maps = [answer.get(name) for name in wanted]
        digest = answer.get(names.TRUNK_DIGEST)
        got = "none" if digest is None else digest.reshape(-1)[0].decode(errors="replace")
        if got != self.trunk_digest:
            raise ServingError(f"Triton at {self.url} has another trunk: got {got}, expected {self.trunk_digest}")
        if any(m is None or m.ndim != 4 or len(m) != 1 or not np.isfinite(m).all() for m in maps):
            raise ServingError(f"Triton at {self.url} answered with maps that cannot be a trunk's")
        return tuple(torch.from_numpy(np.array(m)) for m in maps)


class RemoteOrOwn:
    """A server's maps; from its first failure on those of ``own``, which is made only then."""

    def __init__(self, remote: TrunkFeatures, own: Callable[[], TrunkFeatures]) -> None:
        self.remote, self._make_own = remote, own
        self._own: TrunkFeatures | None = None

    def __call__(self, image: np.ndarray) -> tuple[Tensor, ...]:
        if self._own is None:
            try:
                return self.remote(image)
            except ServingError as error:
                log.warning("%s; from here on the trunk runs in this process", error)
                self._own = self._make_own()
        return self._own(image)
