"""Training and validating on a frozen trunk's features, so that an epoch costs only neck and decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from imis_net.networks.imis_net import IMISNet
from imis_net.prompts import ImageEmbedding
from imis_net.segmenter import TorchSegmenter, model_frame

TrunkFeatures = Callable[[np.ndarray], tuple[Tensor, ...]]
"""uint8 RGB [H, W, 3] -> the trunk's maps, each with a leading axis of 1: a cache, a server, or ``TrunkCache``."""


def normalised(image: np.ndarray, network: IMISNet) -> Tensor:
    """uint8 RGB [H, W, 3] -> what a trunk sees: float32 [1, 3, S, S]."""
    pixels = model_frame(network.name, network.image_size).image(image).to(network.device)
    return (pixels - network.pixel_mean) / network.pixel_std


class OwnTrunk:
    """The maps of a network's own trunk; ``learns`` says whether gradients reach it, where any are wanted."""

    def __init__(self, network: IMISNet, learns: bool = False) -> None:
        self.network, self.learns = network, learns

    def __call__(self, image: np.ndarray) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            return self.network.image_encoder.trunk_features(normalised(image, self.network))


class TrunkCache:
    """Asks once per image and keeps the maps in memory, in half precision.

    Attributes:
        num_encoded: how often a trunk ran.
    """

    def __init__(self, source: TrunkFeatures) -> None:
        self.source = source
        self.num_encoded = 0
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    def __call__(self, image: np.ndarray) -> tuple[Tensor, ...]:
        key = image_key(image)
        if key not in self._kept:
            self._kept[key] = self._maps(image)
        return self._kept[key]

    def _maps(self, image: np.ndarray) -> tuple[Tensor, ...]:
        self.num_encoded += 1
        return tuple(m.half().cpu() for m in self.source(image))


class TrunkFedSegmenter(TorchSegmenter):
    """A segmenter whose trunk's work is done elsewhere; its network needs no trunk at all."""

    def __init__(self, network: IMISNet, trunk_features: TrunkFeatures, device: str | torch.device = "cpu") -> None:
        super().__init__(network, device)
        self.trunk_features = trunk_features

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        features = self.network.image_encoder.from_trunk(on_network(self.trunk_features(image), self.network))
        return ImageEmbedding(tuple(features), (image.shape[0], image.shape[1]), self.encoder_digest)


def image_key(image: np.ndarray) -> str:
    """The same for the same pixels, whatever name they go by."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def on_network(maps: tuple[Tensor, ...], network: IMISNet) -> tuple[Tensor, ...]:
    """Kept maps where the network is, in single precision."""
    return tuple(m.to(network.device, torch.float32) for m in maps)
