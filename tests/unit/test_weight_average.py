"""The moving average of the weights."""

import torch
from torch import nn

from imis_net.training.weight_average import WeightAverage


def test_average_follows_and_leaves_the_network_as_it_was():
    """Breaks if validation changes what is being trained, or frozen parameters are averaged."""
    network = nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    nn.init.zeros_(network.weight)
    average = WeightAverage(network, decay=0.5)
    nn.init.ones_(network.weight)
    for _ in range(30):
        average.update(network)
    nn.init.constant_(network.weight, 3.0)
    with average.applied(network):
        assert torch.allclose(network.weight, torch.ones(1, 2), atol=1e-3)
    assert network.weight.tolist() == [[3.0, 3.0]]
    assert list(average.weights) == ["weight"]
