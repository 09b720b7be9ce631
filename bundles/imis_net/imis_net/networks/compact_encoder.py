"""A small convolutional image encoder: EfficientNet-Lite0 with a feature pyramid.

Source: EfficientNet-Lite0 as timm defines it (arXiv 1905.11946); feature pyramid after arXiv 1612.03144.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imis_net.networks.encoder import ImageEncoder
from imis_net.networks.layers import LayerNorm2d

CHANNELS = (24, 40, 112, 320)
"""EfficientNet-Lite0's at strides 4, 8, 16 and 32."""


class CompactImageEncoder(ImageEncoder):
    """[B, 3, S, S] -> [B, C, S/16, S/16], [B, C/4, S/8, S/8], [B, C/8, S/4, S/4]."""

    num_trunk_maps = len(CHANNELS)

    def __init__(self, out_dim: int, with_trunk: bool = True) -> None:
        super().__init__()
        self.trunk = _trunk() if with_trunk else nn.Identity()
        dim4, dim8, dim16, dim32 = CHANNELS
        self.lateral_32 = nn.Conv2d(dim32, out_dim, 1)
        self.lateral_16 = nn.Conv2d(dim16, out_dim, 1)
        self.lateral_8 = nn.Conv2d(dim8, out_dim // 4, 1)
        self.lateral_4 = nn.Conv2d(dim4, out_dim // 8, 1)
        self.neck = nn.Sequential(
            LayerNorm2d(out_dim), nn.GELU(), nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False), LayerNorm2d(out_dim)
        )

    def trunk_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, S, S] -> maps of ``CHANNELS`` at strides 4, 8, 16 and 32."""
        return tuple(self.trunk(images))

    def from_trunk(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        at_4, at_8, at_16, at_32 = maps
        coarse = F.interpolate(self.lateral_32(at_32), size=at_16.shape[-2:], mode="bilinear", align_corners=False)
        return self.neck(coarse + self.lateral_16(at_16)), self.lateral_8(at_8), self.lateral_4(at_4)

    def for_inference(self, image_size: int) -> CompactImageEncoder:
        """A copy whose norms are folded into the convolutions before them, and whose maps lie channels last in memory:
        twice as fast on a processor, for both leave little to do between one convolution and the next."""
        ready = deepcopy(self).eval()
        _fold_norms(ready.trunk)
        return ready.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> CompactImageEncoder:
        """Batch statistics stay ImageNet's: batches of a few images would estimate them badly."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _trunk() -> nn.Module:
    trunk: nn.Module = timm.create_model(
        "efficientnet_lite0", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4), bn_eps=1e-3
    )
    return trunk


def _fold_norms(module: nn.Module) -> None:
    """Each batch norm goes into the convolution that is registered before it; its activation stays in its place."""
    before: tuple[str, nn.Module] | None = None
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and before and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))  # timm's norms hold their activation
        else:
            _fold_norms(child)
        before = name, child
