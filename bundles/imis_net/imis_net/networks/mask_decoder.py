"""Image embedding and prompt embeddings to mask logits, predicted IoU and category embeddings.

Source: Segment Anything, section 3 "Mask decoder", widened; semantic tokens and the text's mask term are IMIS-Net's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from imis_net.networks.layers import MLP, LayerNorm2d
from imis_net.networks.text_grounding import TextGrounding
from imis_net.networks.two_way_transformer import TwoWayTransformer

NUM_MASK_TOKENS = 4
"""One for unambiguous prompts and three for ambiguous ones; callers take the best of the three."""

DRAWN_AT_ONCE = 2
"""Targets whose features a processor upscales in one go; for more it fetches its memory anew each time."""

STABILITY_OFFSET = 1.5
"""In logits."""

_LESS = 10.0
"""More than predicted IoUs differ by."""


@dataclass(frozen=True)
class MaskPrediction:
    """The decoder's outputs for B targets.

    Attributes:
        low_res_masks: logits [B, 4, S/4, S/4].
        iou_predictions: [B, 4].
        semantic_embeddings: [B, 4, 512].
        tokens: [B, 9 + N, C] and
        src: [B, (S/16)^2, C], the two-way transformer's outputs.
    """

    low_res_masks: Tensor
    iou_predictions: Tensor
    semantic_embeddings: Tensor
    tokens: Tensor
    src: Tensor

    def best(
        self,
        min_area: Tensor | None = None,
        stability_weight: float = 0.0,
        threshold: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the three ambiguity-aware masks the one with the highest predicted IoU.

        Args:
            stability_weight: what a mask gains by its ``stability`` around ``threshold``.
            min_area: [B] low-resolution pixels below which a mask is no answer while another one is, the single mask
                of token 0 as the last resort; None is the published rule, which may answer with nothing.

        Returns:
            logits [B, 1, S/4, S/4], predicted IoU [B], index of the mask token [B].
        """
        preference = self.iou_predictions.clone()
        preference[:, 0] -= _LESS
        if stability_weight:
            preference += stability_weight * self.stability(threshold)
        if min_area is not None:
            area = (self.low_res_masks > 0).flatten(2).sum(2)
            preference -= 2 * _LESS * (area < min_area.to(area.device)[:, None])
        index = preference.argmax(dim=1)
        rows = torch.arange(index.shape[0], device=index.device)
        return self.low_res_masks[rows, index][:, None], self.iou_predictions[rows, index], index

    def stability(self, threshold: float) -> Tensor:
        """[B, 4] in [0, 1]: the share of a mask of a lower threshold that a higher one leaves. A mask that depends on
        where its threshold lies has no edge there.

        Source: Segment Anything, section 5 "Mask quality" of its data engine.
        """
        larger, smaller = (
            (self.low_res_masks > threshold + sign * STABILITY_OFFSET).flatten(2).sum(2) for sign in (-1, 1)
        )
        return smaller / larger.clamp_min(1)


@dataclass(frozen=True)
class Mixed:
    """What the two-way transformer makes of B targets' prompts: enough to rate their masks, before any is drawn.

    Attributes:
        tokens: [B, 9 + N, C] and
        src: [B, (S/16)^2, C], the transformer's outputs.
        evidence: [B, 1, S/8, S/8] of the text in the image, or None.
        iou_predictions: [B, 4].
    """

    tokens: Tensor
    src: Tensor
    evidence: Tensor | None
    iou_predictions: Tensor

    def rows(self, index: Tensor) -> Mixed:
        evidence = None if self.evidence is None else self.evidence[index]
        return Mixed(self.tokens[index], self.src[index], evidence, self.iou_predictions[index])


class RefineBlock(nn.Module):
    """Residual 3x3 convolutions; lets finer features and drawn prompts meet at their own resolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            LayerNorm2d(dim), nn.Conv2d(dim, dim, 3, padding=1), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class MaskDecoder(nn.Module):
    def __init__(
        self, embed_dim: int, semantic_dim: int = 512, mlp_dim: int = 2048, use_fine_features: bool = False
    ) -> None:
        """``use_fine_features``: the image encoder and the prompt encoder also give maps at S/8 and S/4, which are
        added while the masks are upscaled, and text is grounded in the image."""
        super().__init__()
        dim8, dim4 = embed_dim // 4, embed_dim // 8
        self.transformer = TwoWayTransformer(embed_dim, mlp_dim=mlp_dim)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(NUM_MASK_TOKENS, embed_dim)
        self.semantic_tokens = nn.Embedding(NUM_MASK_TOKENS, embed_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, dim8, kernel_size=2, stride=2),
            LayerNorm2d(dim8),
            nn.GELU(),
            nn.ConvTranspose2d(dim8, dim4, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.refine = nn.ModuleList([RefineBlock(dim8), RefineBlock(dim4)]) if use_fine_features else None
        self.grounding = TextGrounding(embed_dim, dim8) if use_fine_features else None
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(embed_dim, embed_dim, dim4) for _ in range(NUM_MASK_TOKENS))
        self.text_output = nn.Linear(embed_dim, dim4)
        self.iou_prediction_head = MLP(embed_dim, 256, NUM_MASK_TOKENS)
        self.semantic_prediction_head = MLP(embed_dim, 256, semantic_dim)

    def forward(
        self,
        features: tuple[Tensor, ...],
        image_pe: Tensor,
        sparse: Tensor,
        dense: tuple[Tensor, ...],
        text: Tensor | None,
    ) -> MaskPrediction:
        """Predict masks for B targets of one image.

        Args:
            features: the image embedding [1, C, S/16, S/16], then finer maps where used; one image for all targets,
                or a batch of B where target b belongs to image b.
            image_pe: [1, C, S/16, S/16].
            sparse: [B, N, C].
            dense: [B or 1, C, S/16, S/16], then finer maps where used.
            text: projected text embedding [B, C] or None.
        """
        return self.draw(self.mix(features, image_pe, sparse, dense, text), features, dense, text)

    def mix(
        self,
        features: tuple[Tensor, ...],
        image_pe: Tensor,
        sparse: Tensor,
        dense: tuple[Tensor, ...],
        text: Tensor | None,
    ) -> Mixed:
        """The first half of ``forward``."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight, self.semantic_tokens.weight])
        tokens = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        image, evidence = features[0] + dense[0], None
        if text is not None and self.grounding is not None:
            evidence, embedded = self.grounding(features, image_pe, text)
            image = image + embedded
        tokens, src = self.transformer(image, image_pe, tokens)
        return Mixed(tokens, src, evidence, self.iou_prediction_head(tokens[:, 0]))

    def draw(
        self, mixed: Mixed, features: tuple[Tensor, ...], dense: tuple[Tensor, ...], text: Tensor | None
    ) -> MaskPrediction:
        """The second half: the masks, which take most of the time."""
        tokens, src = mixed.tokens, mixed.src
        # Slices rather than one split, whose last part of open length TensorRT does not take.
        mask_tokens = tokens[:, 1 : 1 + NUM_MASK_TOKENS]
        semantic_tokens = tokens[:, 1 + NUM_MASK_TOKENS : 1 + 2 * NUM_MASK_TOKENS]
        weights = torch.stack(
            [mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, mask_tokens.unbind(1), strict=True)],
            dim=1,
        )
        if text is not None:
            weights = weights + self.text_output(text)[:, None]
        masks = self._masks(weights, src, features, dense)
        if mixed.evidence is not None:
            masks = masks + F.interpolate(mixed.evidence, scale_factor=2.0, mode="bilinear", align_corners=False)
        return MaskPrediction(
            low_res_masks=masks,
            iou_predictions=mixed.iou_predictions,
            semantic_embeddings=self.semantic_prediction_head(semantic_tokens),
            tokens=tokens,
            src=src,
        )

    def _masks(self, weights: Tensor, src: Tensor, features: tuple[Tensor, ...], dense: tuple[Tensor, ...]) -> Tensor:
        """[B, M, C/8] and the transformer's [B, (S/16)^2, C] -> [B, M, S/4, S/4]."""
        side = features[0].shape[-1]
        if torch.compiler.is_exporting():
            if self.refine is None:
                return self._masks_within_cells(weights, src, side)
        elif src.is_cpu and src.shape[0] > DRAWN_AT_ONCE:
            parts = [slice(i, i + DRAWN_AT_ONCE) for i in range(0, src.shape[0], DRAWN_AT_ONCE)]
            return torch.cat([self._masks(weights[i], src[i], _rows(features, i), _rows(dense, i)) for i in parts])
        upscaled = self._upscale(rearrange(src, "b (h w) c -> b c h w", h=side), features[1:], dense[1:])
        masks = weights @ rearrange(upscaled, "b c h w -> b c (h w)")
        return rearrange(masks, "b m (h w) -> b m h w", h=4 * side)

    def _masks_within_cells(self, weights: Tensor, src: Tensor, side: int) -> Tensor:
        """``_upscale`` and its product with ``weights`` [B, M, C/8] as a graph should make them: [B, M, S/4, S/4].

        A transposed convolution whose kernel is its stride is a linear layer of each position on its own. So the 16
        pixels of a cell stay beside each other and only the finished masks are put into rows; a graph would move the
        features to and from each convolution, which takes as long as they do. Torch does not move them, and its
        convolutions are faster than its linear layers on a processor.
        """
        to_8, norm, act, to_4, act_4 = self.output_upscaling
        at_8 = act(cast(LayerNorm2d, norm).over_last(_within_cells(src, to_8)))
        at_4 = act_4(_within_cells(at_8, to_4))
        masks = rearrange(at_4, "b n outer inner c -> b (n outer inner) c") @ weights.mT
        order = "b (h w outer_y outer_x inner_y inner_x) m -> b m (h outer_y inner_y) (w outer_x inner_x)"
        return rearrange(masks, order, h=side, w=side, outer_y=2, outer_x=2, inner_y=2, inner_x=2)

    def _upscale(self, src: Tensor, fine: tuple[Tensor, ...], fine_dense: tuple[Tensor, ...]) -> Tensor:
        """[B, C, S/16, S/16] -> [B, C/8, S/4, S/4]."""
        if self.refine is None:
            return self.output_upscaling(src)
        to_8, norm, act, to_4, act_4 = self.output_upscaling
        at_8 = self.refine[0](act(norm(to_8(src) + fine[0] + fine_dense[0])))
        return act_4(self.refine[1](to_4(at_8) + fine[1] + fine_dense[1]))


def _within_cells(x: Tensor, layer: nn.Module) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 at each position: [..., C] -> [..., 4, C'], its pixels row by row."""
    weight = rearrange(layer.get_parameter("weight"), "c_in c_out y x -> (y x c_out) c_in")
    bias = layer.get_parameter("bias").repeat(4)
    return rearrange(F.linear(x, weight, bias), "... (pixel c) -> ... pixel c", pixel=4)


def _rows(maps: tuple[Tensor, ...], rows: slice) -> tuple[Tensor, ...]:
    """Of targets, unless all share one."""
    return tuple(m if m.shape[0] == 1 else m[rows] for m in maps)
