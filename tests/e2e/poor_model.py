"""A model that is worth retraining: the committed one, what learns of it shaken until its masks are poor."""

from __future__ import annotations

from pathlib import Path

import torch

from imis_net.checkpoint import load_weights, save_weights
from imis_net.networks.build import imis_net_compact
from imis_net.segmenter import weights_path


def poor_weights(path: Path, side_px: int) -> Path:
    """Noise as large as the weights themselves on prompt encoder and decoder; the same every time."""
    network = imis_net_compact(side_px)
    load_weights(network, weights_path("imis_net_compact"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*network.mask_decoder.parameters(), *network.prompt_encoder.parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(parameter.std(unbiased=False) * noise)
    save_weights(network, path, {"what": "shaken"}, half=True)
    return path
