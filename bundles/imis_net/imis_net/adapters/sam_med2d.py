"""SAM-Med2D behind the Segmenter contract: SAM ViT-B at 256 px with an adapter in every transformer block.

Source: arXiv 2308.16184. The image is stretched to 256 x 256. An adapter reads what the block's MLP reads, weighs
channels, adds a strided convolution undone by a transposed one, and is added beside the MLP.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from imis_net.adapters.sam import SamSegmenter, load_network
from imis_net.errors import CheckpointError
from imis_net.prompts import Prompt

IMAGE_SIZE = 256
WIDTH = 768


class Adapter(nn.Module):
    """[B, h, w, C] -> [B, h, w, C]; module names are the published file's."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        hidden = width // 4
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        maps = tokens.permute(0, 3, 1, 2)
        weighted = maps * self.channel(maps.mean((2, 3)))[:, :, None, None]
        return self.norm((maps + self.spatial(weighted)).permute(0, 2, 3, 1))


class SamMed2dSegmenter(SamSegmenter):
    """Stretched frame, nearest pixels, three candidates for every prompt, as the published evaluation does."""

    def _to_frame(self, image: np.ndarray) -> Tensor:
        return self.frame.image(image)

    def _scaled(self, xy_px: np.ndarray, size: tuple[int, int]) -> Tensor:
        return self.frame.points(torch.tensor(xy_px.reshape(1, -1, 2)), size)

    def _to_original(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return self.frame.to_original(logits, size)

    def _is_ambiguous(self, prompt: Prompt) -> bool:
        return True


def load_sam_med2d(weights: Path) -> SamMed2dSegmenter:
    """The published ``sam-med2d_b.pth``, adapters included.

    Raises:
        CheckpointError: no such file, or another model's.
    """
    return SamMed2dSegmenter(load_network(weights, build_sam_med2d))


def build_sam_med2d(size: str = "vit_b") -> Sam:
    """
    Raises:
        CheckpointError: any size but the one that was published.
    """
    if size != "vit_b":
        raise CheckpointError(f"SAM-Med2D is published as vit_b, got {size}")
    encoder = ImageEncoderViT(
        img_size=IMAGE_SIZE,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(2, 5, 8, 11),
    )
    for block in encoder.blocks:
        block.Adapter = Adapter()
        block.mlp.register_forward_hook(partial(_add_adapter, block.Adapter))
    prompts = PromptEncoder(256, (IMAGE_SIZE // 16,) * 2, (IMAGE_SIZE,) * 2, 16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=256, transformer=transformer))


def _add_adapter(adapter: Adapter, _mlp: nn.Module, tokens: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook on the MLP, so that the block keeps its published parameter names."""
    return output + adapter(tokens[0])
