"""SAM's image encoder with IMIS-Net's neck.

Source: Segment Anything (arXiv 2304.02643) for the trunk, whose blocks come from the segment-anything package; the neck
is IMIS-Net's. The weights are those of 1024 px whatever the frame: position tables are resized on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from einops import rearrange
from segment_anything.modeling.image_encoder import Attention, Block, PatchEmbed, get_rel_pos
from torch import Tensor, nn
from torch.nn import functional as F

from imis_net.networks.encoder import ImageEncoder
from imis_net.networks.layers import LayerNorm2d

PATCH_PX = 16
PRETRAINED_SIDE = 64
"""Tokens per side at 1024 px, for which the position tables are stored."""
WINDOW_SIDE = 14


class RelativePositionAttention(Attention):
    """SAM's attention with its decomposed relative position as the additive mask of one fused call."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> the same."""
        height, width = x.shape[1:3]
        q, k, v = rearrange(self.qkv(x), "b h w (qkv n d) -> qkv b n (h w) d", qkv=3, n=self.num_heads)
        grid = rearrange(q, "b n (h w) d -> b n h w d", h=height)
        by_row = torch.einsum("bnhwd,hkd->bnhwk", grid, get_rel_pos(height, height, self.rel_pos_h))
        by_column = torch.einsum("bnhwd,wkd->bnhwk", grid, get_rel_pos(width, width, self.rel_pos_w))
        bias = rearrange(by_row[..., :, None] + by_column[..., None, :], "b n h w y x -> b n (h w) (y x)")
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(rearrange(out, "b n (h w) d -> b h w (n d)", h=height))


class ViTTrunk(nn.Module):
    """SAM's ViT without its own neck: [B, 3, S, S] -> tokens [B, S/16, S/16, C]."""

    def __init__(self, embed_dim: int, depth: int, num_heads: int, global_attn_indexes: tuple[int, ...]) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dim=embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, PRETRAINED_SIDE, PRETRAINED_SIDE, embed_dim))
        self.blocks = nn.ModuleList(
            _block(embed_dim, num_heads, 0 if i in global_attn_indexes else WINDOW_SIDE) for i in range(depth)
        )

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.patch_embed(images)
        x = x + self._position(x.shape[1])
        for block in self.blocks:
            x = block(x)
        return x

    def _position(self, side: int) -> Tensor:
        if side == self.pos_embed.shape[1]:
            return self.pos_embed
        table: Tensor = rearrange(self.pos_embed, "1 h w c -> 1 c h w")
        table = F.interpolate(table, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        return rearrange(table, "1 c h w -> 1 h w c")

    def of_side(self, side: int) -> ViTTrunk:
        """The same for frames of ``side`` tokens, whose position tables are resized once; other weights are shared."""
        copied: dict[int, object] = {id(p): p for p in self.parameters()}
        copied[id(self.pos_embed)] = nn.Parameter(self._position(side), requires_grad=False)
        blocks: list[Any] = list(self.blocks)
        for block in blocks:
            if not block.window_size:
                for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
                    copied[id(table)] = nn.Parameter(_relative(table, 2 * side - 1), requires_grad=False)
        return deepcopy(self, copied)


class ImageEncoderViT(ImageEncoder):
    """Trunk and neck: normalised images [B, 3, S, S] -> (embedding [B, out_dim, S/16, S/16],)."""

    num_trunk_maps = 1
    trunk: ViTTrunk

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_attn_indexes: tuple[int, ...],
        out_dim: int,
        with_trunk: bool = True,
    ) -> None:
        super().__init__()
        trunk = ViTTrunk(embed_dim, depth, num_heads, global_attn_indexes) if with_trunk else nn.Identity()
        self.trunk = trunk  # type: ignore[assignment]
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_dim, kernel_size=1, bias=False),
            LayerNorm2d(out_dim),
            nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_dim),
        )

    def trunk_features(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, S, S] -> ([B, C, S/16, S/16],)."""
        return (rearrange(self.trunk(images), "b h w c -> b c h w"),)

    def from_trunk(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (self.neck(maps[0]),)

    def for_inference(self, image_size: int) -> ImageEncoderViT:
        trunk = self.trunk.of_side(image_size // PATCH_PX)
        copied: dict[int, object] = {id(self.trunk): trunk, id(self.neck): self.neck}
        return deepcopy(self, copied)


def _relative(table: Tensor, length: int) -> Tensor:
    """[L, D] -> [length, D], as Segment Anything resizes it."""
    resized = F.interpolate(rearrange(table, "l d -> 1 d l"), size=length, mode="linear")
    return rearrange(resized, "1 d l -> l d")


def _block(embed_dim: int, num_heads: int, window_size: int) -> Block:
    input_size = (PRETRAINED_SIDE, PRETRAINED_SIDE)
    block = Block(embed_dim, num_heads, use_rel_pos=True, window_size=window_size, input_size=input_size)
    attention_size = (window_size, window_size) if window_size else input_size
    block.attn = RelativePositionAttention(embed_dim, num_heads, use_rel_pos=True, input_size=attention_size)
    return block
