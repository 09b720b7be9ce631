"""Every model of the family by name. The only owner of architecture numbers.

A network made ``with_trunk=False`` has no image encoder's trunk: the trunk's maps come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from imis_net.networks.compact_encoder import CompactImageEncoder
from imis_net.networks.dense_prompt_encoder import DensePromptEncoder
from imis_net.networks.image_encoder import ImageEncoderViT
from imis_net.networks.imis_net import IMISNet
from imis_net.networks.mask_decoder import MaskDecoder
from imis_net.networks.prompt_encoder import PromptEncoder
from imis_net.networks.text_encoder import CategoryTextEncoder, ClipTextEncoder

PATCH_PX = 16
DECODER_DIMS = (256, 512, 768)
CLIP_TEXT_DIM = 512
TEXT_PROJECTION_DIM = 768
"""IMIS-Bench keeps the text projection this wide whatever the decoder's width, so that only the widest takes text."""

COMPACT_IMAGE_SIZE = 512
COMPACT_DIM = 192
COMPACT_MLP_DIM = 512
COMPACT_CATEGORIES = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "bladder",
    "femur",
    "retinal vessel",
    "left ventricle myocardium",
    "brain",
    "nucleus",
)
"""What the compact model saw by name in training; its text prompts can be nothing else."""
COMPACT_TAUGHT_ABSENT = COMPACT_CATEGORIES[: COMPACT_CATEGORIES.index("bladder")]
"""Those of completely labelled images, where it also learnt what is missing. It finds the others in any image."""


@dataclass(frozen=True)
class ViTSize:
    """Segment Anything's image encoder sizes (arXiv 2304.02643)."""

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]


VIT_B = ViTSize(768, 12, 12, (2, 5, 8, 11))
VIT_L = ViTSize(1024, 24, 16, (5, 11, 17, 23))
VIT_H = ViTSize(1280, 32, 16, (7, 15, 23, 31))


def imis_net_vit_b(image_size: int = 1024, decoder_dim: int = 768, with_trunk: bool = True) -> IMISNet:
    """IMIS-Net on SAM's ViT-B, the published size."""
    return _imis_net(VIT_B, image_size, decoder_dim, with_trunk, "imis_net_vit_b")


def imis_net_vit_l(image_size: int = 1024, decoder_dim: int = 768, with_trunk: bool = True) -> IMISNet:
    """IMIS-Net on SAM's ViT-L."""
    return _imis_net(VIT_L, image_size, decoder_dim, with_trunk, "imis_net_vit_l")


def imis_net_vit_h(image_size: int = 1024, decoder_dim: int = 768, with_trunk: bool = True) -> IMISNet:
    """IMIS-Net on SAM's ViT-H."""
    return _imis_net(VIT_H, image_size, decoder_dim, with_trunk, "imis_net_vit_h")


def imis_net_compact(image_size: int = COMPACT_IMAGE_SIZE, with_trunk: bool = True) -> IMISNet:
    """The small default: convolutional encoder, finer features for the decoder, prompts drawn as well as tokenised."""
    dim = COMPACT_DIM
    return IMISNet(
        image_encoder=CompactImageEncoder(dim, with_trunk),
        prompt_encoder=PromptEncoder(dim, image_size, DensePromptEncoder(image_size, (dim, dim // 4, dim // 8))),
        mask_decoder=MaskDecoder(dim, mlp_dim=COMPACT_MLP_DIM, use_fine_features=True),
        text_encoder=CategoryTextEncoder(COMPACT_CATEGORIES, dim=dim),
        text_projection=nn.Linear(dim, dim),
        name="imis_net_compact",
    )


BUILDERS: dict[str, Callable[..., IMISNet]] = {
    "imis_net_compact": imis_net_compact,
    "imis_net_vit_b": imis_net_vit_b,
    "imis_net_vit_l": imis_net_vit_l,
    "imis_net_vit_h": imis_net_vit_h,
}


def _imis_net(size: ViTSize, image_size: int, decoder_dim: int, with_trunk: bool, name: str) -> IMISNet:
    if image_size < 4 * PATCH_PX or image_size % PATCH_PX:
        raise ValueError(f"image_size: expected a multiple of {PATCH_PX} such as 256, 512 or 1024, got {image_size}")
    if decoder_dim not in DECODER_DIMS:
        raise ValueError(f"decoder_dim: expected one of {DECODER_DIMS}, got {decoder_dim}")
    net = IMISNet(
        image_encoder=ImageEncoderViT(
            embed_dim=size.embed_dim,
            depth=size.depth,
            num_heads=size.num_heads,
            global_attn_indexes=size.global_attn_indexes,
            out_dim=decoder_dim,
            with_trunk=with_trunk,
        ),
        prompt_encoder=PromptEncoder(decoder_dim, image_size),
        mask_decoder=MaskDecoder(decoder_dim),
        text_encoder=ClipTextEncoder(),
        text_projection=nn.Linear(CLIP_TEXT_DIM, TEXT_PROJECTION_DIM),
        name=name,
    )
    # The paper's setting: only the neck, the prompt encoder, the decoder and the text projection learn.
    net.image_encoder.trunk.requires_grad_(False)
    net.text_encoder.requires_grad_(False)
    return net
