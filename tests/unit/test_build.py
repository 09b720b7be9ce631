"""Builders: the numbers that the paper and the checkpoint fix."""

import pytest
import torch

from imis_net.errors import PromptError
from imis_net.networks.build import imis_net_vit_b, imis_net_vit_h, imis_net_vit_l


@pytest.mark.parametrize(("decoder_dim", "expected"), [(256, 5_518_416), (512, 15_190_608), (768, 29_679_696)])
def test_trainable_parameters_are_the_papers(decoder_dim, expected):
    """Breaks if the neck freezes, the trunk or text tower thaws, or any width changes (paper: 5.52, 15.19, 29.68 M)."""
    with torch.device("meta"):
        net = imis_net_vit_b(decoder_dim=decoder_dim)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected


def test_vit_b_is_the_checkpoints_size():
    """Breaks if a part is added to or lost from the network that official weights must fill."""
    with torch.device("meta"):
        net = imis_net_vit_b()
    unused_sam_neck = 787_456
    assert sum(p.numel() for p in net.parameters()) == 182_516_560 - unused_sam_neck


@pytest.mark.parametrize(("build", "depth", "width"), [(imis_net_vit_l, 24, 1024), (imis_net_vit_h, 32, 1280)])
def test_larger_encoders_have_sams_depth_and_width(build, depth, width):
    """Breaks if L and H get each other's numbers."""
    with torch.device("meta"):
        trunk = build().image_encoder.trunk
    assert (len(trunk.blocks), trunk.pos_embed.shape[-1]) == (depth, width)


def test_weights_do_not_depend_on_the_image_size():
    """Breaks if a position table is made for the frame, so that one checkpoint would no longer serve 256, 512, 1024."""
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in imis_net_vit_b(s).state_dict().items()} for s in (256, 512, 1024)]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("wrong", [{"image_size": 300}, {"image_size": 16}, {"decoder_dim": 100}])
def test_other_sizes_are_refused(wrong):
    """Breaks if a frame that patches do not fill, or a width that was never checked, is built in silence."""
    with pytest.raises(ValueError, match="expected"):
        imis_net_vit_b(**wrong)


def test_narrow_decoders_refuse_text():
    """Breaks if a 768-wide text vector reaches a 256-wide decoder as a shape error deep inside."""
    with torch.device("meta"):
        net = imis_net_vit_b(decoder_dim=256)
    assert net.known_texts == ()
    with pytest.raises(PromptError, match="takes no text"):
        net.encode_text(["liver"])
