"""Prompts to embeddings: clicks, box corners and text become tokens, masks become a dense map.

Source: Segment Anything, section 3 "Prompt encoder", at IMIS-Net's width; the text token is IMIS-Net's (arXiv
2411.12814, section 4.1).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from imis_net.networks.dense_prompt_encoder import DensePromptEncoder
from imis_net.networks.layers import LayerNorm2d


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of coordinates in [0, 1]: [..., 2] (x, y) -> [..., 2 * num_features]."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def forward(self, xy: Tensor) -> Tensor:
        phase = 2 * math.pi * ((2 * xy - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    def grid(self, side: int) -> Tensor:
        """Encoding of the cell centres of a side x side grid: [1, C, side, side]."""
        centres = (torch.arange(side, device=self.positional_encoding_gaussian_matrix.device) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return rearrange(self(torch.stack([x, y], dim=-1)), "h w c -> 1 c h w")


class PromptEncoder(nn.Module):
    """Encode every combination of clicks, box, text and previous mask, for B targets of one image at once."""

    def __init__(self, embed_dim: int, image_size: int, dense: DensePromptEncoder | None = None) -> None:
        """``dense`` replaces SAM's mask convolutions and also draws clicks and boxes into the dense map, which a
        small network needs in order to learn from little data."""
        super().__init__()
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.embedding_side = image_size // 16
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.dense = dense
        if dense is None:
            self.mask_downscaling = nn.Sequential(
                nn.Conv2d(1, 4, kernel_size=2, stride=2),
                LayerNorm2d(4),
                nn.GELU(),
                nn.Conv2d(4, 16, kernel_size=2, stride=2),
                LayerNorm2d(16),
                nn.GELU(),
                nn.Conv2d(16, embed_dim, kernel_size=1),
            )
            self.no_mask_embed = nn.Embedding(1, embed_dim)

    def dense_pe(self) -> Tensor:
        """Position encoding of the image embedding's grid, [1, C, S/16, S/16]."""
        return self.pe_layer.grid(self.embedding_side)

    def forward(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None,
        text: Tensor | None,
        low_res_masks: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode the prompts of B targets.

        Args:
            point_coords: [B, N, 2], (x, y) pixels of the S x S model frame, or None.
            point_labels: [B, N], 1 foreground, 0 background, -1 no point.
            boxes: [B, 4], x0, y0, x1, y1 in the same frame, or None.
            text: projected text embeddings [B, C], or None.
            low_res_masks: raw logits [B, 1, S/4, S/4], or None.

        Returns:
            sparse [B, N', C] in the order clicks (with a padding point when there is no box), corners, text; and the
            dense maps: first [B or 1, C, S/16, S/16] (1 where it is the same for all), then finer ones if any.
        """
        given = next((p for p in (point_coords, boxes, low_res_masks, text) if p is not None), None)
        num_targets = 1 if given is None else given.shape[0]
        tokens = []
        if point_coords is not None and point_labels is not None:
            tokens.append(self._embed_points(point_coords, point_labels, pad=boxes is None))
        if boxes is not None:
            tokens.append(self._embed_boxes(boxes))
        if text is not None:
            tokens.append(text[:, None])
        weight = self.not_a_point_embed.weight
        sparse = torch.cat(tokens, dim=1) if tokens else weight.new_zeros(num_targets, 0, self.embed_dim)
        return sparse, self._embed_dense(point_coords, point_labels, boxes, low_res_masks, num_targets)

    def _embed_points(self, coords: Tensor, labels: Tensor, pad: bool) -> Tensor:
        if pad:
            coords = torch.cat([coords, coords.new_zeros(coords.shape[0], 1, 2)], dim=1)
            labels = torch.cat([labels, -labels.new_ones(labels.shape[0], 1)], dim=1)
        position = self.pe_layer((coords + 0.5) / self.image_size)
        # Gather rather than boolean assignment: bit-equal, and it exports with a dynamic number of clicks.
        background, foreground, _, _ = (e.get_parameter("weight") for e in self.point_embeddings)
        kinds = torch.cat([self.not_a_point_embed.weight, background, foreground])
        is_point = (labels >= 0)[..., None]
        return torch.where(is_point, position, torch.zeros_like(position)) + kinds[labels.long() + 1]

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        corners = rearrange(boxes, "b (corner xy) -> b corner xy", xy=2)
        _, _, top_left, bottom_right = (e.get_parameter("weight") for e in self.point_embeddings)
        kinds = torch.cat([top_left, bottom_right])
        return self.pe_layer((corners + 0.5) / self.image_size) + kinds

    def _embed_dense(
        self,
        coords: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        low_res_masks: Tensor | None,
        num_targets: int,
    ) -> tuple[Tensor, ...]:
        if self.dense is not None:
            return self.dense(coords, labels, boxes, low_res_masks, num_targets)
        if low_res_masks is not None:
            return (self.mask_downscaling(low_res_masks),)
        shared = rearrange(self.no_mask_embed.weight, "1 c -> 1 c 1 1")
        return (shared.expand(1, -1, self.embedding_side, self.embedding_side),)
