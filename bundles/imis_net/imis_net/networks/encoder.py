"""What every image encoder is made of: a pretrained trunk, often frozen, and a neck that always learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Normalised images [B, 3, S, S] -> the embedding [B, C, S/16, S/16], then finer maps of encoders that have them.

    The two halves can be called by themselves: whoever has a frozen trunk's features trains the neck without it, on an
    encoder made ``with_trunk=False``.
    """

    num_trunk_maps: ClassVar[int]
    trunk: nn.Module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.from_trunk(self.trunk_features(images))

    def trunk_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The trunk's maps, channels first."""
        raise NotImplementedError

    def from_trunk(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The neck: ``trunk_features``' maps -> what ``forward`` returns."""
        raise NotImplementedError

    def for_inference(self, image_size: int) -> ImageEncoder:
        """The same function of frames of one size, with what follows from that size and from the weights worked out
        before. It does not follow weights that change later."""
        return self
