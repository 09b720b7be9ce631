"""Prompts to embeddings: clicks, box corners and text become tokens, masks become a dense map.

Source: Segment Anything, section 3 "Prompt encoder", at IMIS-Net's width; the text token is IMIS-Net's (arXiv
2411.12814, section 4.1).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from imis_net.networks.dense_prompt_encoder import DensePromptEncoder
from imis_net.networks.layers import LayerNorm2d
from imis_net.networks.point_kinds import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT


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

    _kept_pe: Tensor | None

    def __init__(self, embed_dim: int, image_size: int, dense: DensePromptEncoder | None = None) -> None:
        """``dense`` replaces SAM's mask convolutions and also draws clicks and boxes into the dense map, which a
        small network needs in order to learn from little data."""
        super().__init__()
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.embedding_side = image_size // 16
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.register_buffer("_kept_pe", None, persistent=False)
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
        return self.pe_layer.grid(self.embedding_side) if self._kept_pe is None else self._kept_pe

    def prepare(self) -> None:
        """Lay out and work out once, for weights that stay as they are, what takes 7 % of a click on a processor."""
        self.to(memory_format=torch.channels_last)
        self._kept_pe = self.pe_layer.grid(self.embedding_side)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept_pe = None  # it was of other weights
        super()._load_from_state_dict(*args, **kwargs)

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
        coords, labels = labelled_points(point_coords, point_labels, boxes, text, low_res_masks)
        return self.encode(coords, labels, text, low_res_masks)

    def encode(
        self, coords: Tensor, labels: Tensor, text: Tensor | None, low_res_masks: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Points [B, N, 2] of kinds [B, N], as ``labelled_points`` gives; the rest and the result as in ``forward``."""
        sparse = self._embed_points(coords, labels)
        if text is not None:
            sparse = torch.cat([sparse, text[:, None]], dim=1)
        return sparse, self._embed_dense(coords, labels, low_res_masks)

    def _embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        position = self.pe_layer((coords + 0.5) / self.image_size)
        # Gather rather than boolean assignment: bit-equal, and it exports with a dynamic number of clicks.
        kinds = torch.cat([self.not_a_point_embed.weight, *(e.get_parameter("weight") for e in self.point_embeddings)])
        is_point = (labels > NOT_A_POINT)[..., None]
        return torch.where(is_point, position, torch.zeros_like(position)) + kinds[labels + 1]

    def _embed_dense(self, coords: Tensor, labels: Tensor, low_res_masks: Tensor | None) -> tuple[Tensor, ...]:
        if self.dense is not None:
            return self.dense(coords, labels, low_res_masks)
        if low_res_masks is not None:
            return (self.mask_downscaling(low_res_masks),)
        shared = rearrange(self.no_mask_embed.weight, "1 c -> 1 c 1 1")
        return (shared.expand(1, -1, self.embedding_side, self.embedding_side),)


def labelled_points(
    coords: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    text: Tensor | None = None,
    low_res_masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clicks and boxes as points of six kinds: clicks (with a padding point when there is no box), then corners.

    Text and previous mask only tell how many targets there are. Arguments as ``PromptEncoder.forward``'s.
    """
    like = next((p for p in (coords, boxes, low_res_masks, text) if p is not None), torch.empty(1))
    num_targets = like.shape[0]
    points = [like.new_zeros(num_targets, 0, 2)]
    kinds = [like.new_zeros(num_targets, 0, dtype=torch.long)]
    if coords is not None and labels is not None:
        points.append(coords)
        kinds.append(labels.long())
        if boxes is None:
            points.append(coords.new_zeros(num_targets, 1, 2))
            kinds.append(kinds[0].new_full((num_targets, 1), NOT_A_POINT))
    if boxes is not None:
        points.append(rearrange(boxes, "b (corner xy) -> b corner xy", xy=2))
        kinds.append(kinds[0].new_tensor([TOP_LEFT, BOTTOM_RIGHT]).expand(num_targets, -1))
    return torch.cat(points, dim=1), torch.cat(kinds, dim=1)
