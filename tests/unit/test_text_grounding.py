"""Names as segmentation weights."""

import pytest
import torch

from imis_net.networks.text_grounding import TextGrounding

DIM, FINE = 32, 8


@pytest.fixture
def grounding():
    torch.manual_seed(0)
    return TextGrounding(DIM, FINE)


def inputs(batch: int, num_names: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    features = torch.randn(batch, DIM, 8, 8), torch.randn(batch, FINE, 16, 16)
    return features, torch.randn(1, DIM, 8, 8), torch.randn(num_names, DIM)


@torch.no_grad()
def test_one_image_is_shared_by_all_names(grounding):
    """Breaks if names of one image get one another's maps."""
    features, position, names = inputs(1, 3)
    together, _ = grounding(features, position, names)
    assert together.shape == (3, 1, 16, 16)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], grounding(features, position, names[i : i + 1])[0])


@torch.no_grad()
def test_a_batch_of_images_has_a_name_each(grounding):
    """Breaks if the second image's name is looked for in the first."""
    features, position, names = inputs(2, 2)
    both, _ = grounding(features, position, names)
    second, _ = grounding(tuple(f[1:] for f in features), position, names[1:])
    torch.testing.assert_close(both[1:], second)


def test_names_learn_where_they_are(grounding):
    """Breaks if gradients do not reach the name: two names, two places, learned from one image in a few steps."""
    features, position, names = inputs(1, 2)
    truth = torch.zeros(2, 1, 16, 16)
    truth[0, :, :8], truth[1, :, 8:] = 1, 1
    optimiser = torch.optim.Adam(grounding.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(grounding(features, position, names)[0], truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ((grounding(features, position, names)[0] > 0) == truth.bool()).float().mean() > 0.95
