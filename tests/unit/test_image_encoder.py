"""The ViT image encoder against Meta's own class and at every frame size."""

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT as MetaEncoder

from imis_net.networks.image_encoder import ImageEncoderViT


@pytest.fixture
def small() -> ImageEncoderViT:
    torch.manual_seed(0)
    encoder = ImageEncoderViT(embed_dim=32, depth=3, num_heads=2, global_attn_indexes=(1,), out_dim=24)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.2)
    return encoder.eval()


def test_trunk_equals_metas_encoder_at_1024(small):
    """Breaks if window padding, relative positions or the residual order differ from Segment Anything's."""
    meta = MetaEncoder(
        img_size=1024,
        embed_dim=32,
        depth=3,
        num_heads=2,
        out_chans=8,
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(1,),
    ).eval()
    missing, unexpected = meta.load_state_dict(small.trunk.state_dict(), strict=False)
    assert all(k.startswith("neck.") for k in missing)
    assert unexpected == []
    meta.neck = torch.nn.Identity()
    image = torch.randn(1, 3, 1024, 1024)
    with torch.inference_mode():
        torch.testing.assert_close(small.trunk(image).permute(0, 3, 1, 2), meta(image), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [256, 512])
def test_smaller_frames_give_smaller_embeddings(small, side):
    """Breaks if a position table is not resized to the frame's grid."""
    with torch.inference_mode():
        (embedding,) = small(torch.randn(2, 3, side, side))
    assert embedding.shape == (2, 24, side // 16, side // 16)
    assert embedding.isfinite().all()


def test_gradients_reach_the_neck_past_a_frozen_trunk(small):
    """Breaks if the embedding is detached, as IMIS-Bench's trainer does: the neck would never learn."""
    small.trunk.requires_grad_(False)
    small(torch.randn(1, 3, 256, 256))[0].sum().backward()
    assert small.neck[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in small.trunk.parameters())
