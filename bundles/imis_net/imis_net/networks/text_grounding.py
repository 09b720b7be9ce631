"""Where a named target may lie: the scalar product of the name's vector with every position's features.

A token alone has to be related to places by attention, which a few hundred named images do not teach; a product is a
segmentation head whose weights are the name, and learns from the first step on.
Source: language-driven semantic segmentation (LSeg, arXiv 2201.03546).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from imis_net.networks.layers import LayerNorm2d

GROUNDING_DIM = 96


class TextGrounding(nn.Module):
    """Image features and B names -> evidence [B, 1, S/8, S/8] as logits, and the same embedded at S/16."""

    def __init__(self, embed_dim: int, fine_dim: int) -> None:
        """``fine_dim``: channels of the image's map at S/8."""
        super().__init__()
        self.from_16 = nn.Conv2d(embed_dim, GROUNDING_DIM, 1)
        self.from_position = nn.Conv2d(embed_dim, GROUNDING_DIM, 1)
        self.from_8 = nn.Conv2d(fine_dim, GROUNDING_DIM, 1)
        self.context = nn.Sequential(
            LayerNorm2d(GROUNDING_DIM), nn.GELU(), nn.Conv2d(GROUNDING_DIM, GROUNDING_DIM, 5, padding=2)
        )
        self.detail = nn.Sequential(
            LayerNorm2d(GROUNDING_DIM), nn.GELU(), nn.Conv2d(GROUNDING_DIM, GROUNDING_DIM, 3, padding=1)
        )
        self.from_text = nn.Linear(embed_dim, GROUNDING_DIM)
        self.to_embedding = nn.Conv2d(1, embed_dim, 1, bias=False)
        nn.init.zeros_(self.to_embedding.weight)

    def forward(self, features: tuple[Tensor, ...], image_pe: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``features``: the image embedding [1 or B, C, S/16, S/16] and its map at S/8; ``text``: [B, C]."""
        at_8, name = self.places(features, image_pe), self.name(text)
        # One image for all names, or one for each; matmul lets the former share.
        product = rearrange(name, "b c -> b 1 c") @ rearrange(at_8, "b c h w -> b c (h w)")
        evidence = rearrange(product, "b 1 (h w) -> b 1 h w", h=at_8.shape[-2])
        return evidence, self.to_embedding(torch.tanh(F.avg_pool2d(evidence, 2) / 4))

    def places(self, features: tuple[Tensor, ...], image_pe: Tensor) -> Tensor:
        """What lies where: [I, GROUNDING_DIM, S/8, S/8] of I images."""
        at_16 = self.from_16(features[0]) + self.from_position(image_pe)
        at_16 = at_16 + self.context(at_16)
        at_8 = F.interpolate(at_16, scale_factor=2.0, mode="bilinear", align_corners=False) + self.from_8(features[1])
        return at_8 + self.detail(at_8)

    def name(self, text: Tensor) -> Tensor:
        """Text embeddings [K, C] -> [K, GROUNDING_DIM]; its product with a place is the evidence as a logit."""
        return self.from_text(text) * GROUNDING_DIM**-0.5

    def of_all(self, features: tuple[Tensor, ...], image_pe: Tensor, text: Tensor) -> Tensor:
        """The evidence for each of K names in each of I images: [I, K, S/8, S/8]."""
        return torch.einsum("kc,ichw->ikhw", self.name(text), self.places(features, image_pe))
