"""The compact image encoder as it serves: sooner, and the same."""

import torch
from torch import nn

from imis_net.networks.compact_encoder import CompactImageEncoder


@torch.no_grad()
def test_ready_for_inference_it_is_the_same_function():
    """Breaks if a norm goes into the wrong convolution, loses its activation, or the original is folded as well."""
    torch.manual_seed(0)
    encoder = CompactImageEncoder(32).eval()
    for norm in (m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)):
        for statistic in (norm.running_mean, norm.bias):
            statistic.normal_(std=0.1)
        for scale in (norm.running_var, norm.weight):
            scale.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    ready = encoder.for_inference(64)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ready.modules())
    for got, expected in zip(ready(images), encoder(images), strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.state_dict(), before, atol=0, rtol=0)
