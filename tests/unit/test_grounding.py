"""Names taught where they lie, together with all else."""

import numpy as np
import pytest
import torch

from imis_net.errors import DatasetError
from imis_net.networks.build import imis_net_compact, imis_net_vit_b
from imis_net.networks.text_grounding import TextGrounding
from imis_net.training.grounding import coverage, grounding_loss

SIDE = 64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return imis_net_compact(image_size=SIDE).train()


def half(columns: slice) -> np.ndarray:
    mask = np.zeros((30, 40), bool)
    mask[:, columns] = True
    return mask


def test_coverage_is_the_share_of_each_cell():
    """Breaks if a view's masks are not brought to the frame's grid, or an absent name covers anything."""
    shares = coverage({"liver": half(slice(0, 20))}, ["spleen", "liver"], SIDE)
    assert {name: share.shape for name, share in shares.items()} == {"spleen": (8, 8), "liver": (8, 8)}
    assert shares["liver"][:, :4].min() == 1
    assert shares["liver"][:, 4:].max() == shares["spleen"].max() == 0


def test_evidence_of_all_names_is_that_of_each(network):
    """Breaks if teaching all names at once asks something else than a text prompt does."""
    head: TextGrounding = network.mask_decoder.grounding
    with torch.no_grad():
        features = network.encode_image(torch.randn(2, 3, SIDE, SIDE))
        position, text = network.prompt_encoder.dense_pe(), network.encode_text(["liver", "spleen", "aorta"])
        together = head.of_all(features, position, text)
        for i in range(2):
            alone, _ = head(tuple(f[i : i + 1] for f in features), position, text)
            torch.testing.assert_close(together[i], alone[:, 0], rtol=1e-4, atol=1e-5)


def test_images_learn_their_own_names_only(network):
    """Breaks if a name is taught on another image, or places are mixed up."""
    torch.manual_seed(1)
    features = tuple(f.detach() for f in network.encode_image(torch.randn(3, 3, SIDE, SIDE)))
    shares = [
        coverage({"liver": half(slice(0, 20))}, ["spleen"], SIDE),
        None,
        coverage({"aorta": half(slice(20, 40))}, [], SIDE),
    ]
    network.zero_grad()
    leaves = tuple(f.clone().requires_grad_() for f in features)
    before = grounding_loss(network, leaves, shares)
    before.backward()
    gradient = leaves[0].grad.abs().sum((1, 2, 3))
    assert gradient[0] > 0
    assert gradient[2] > 0
    assert gradient[1] == 0
    optimiser = torch.optim.Adam(network.mask_decoder.grounding.parameters(), 1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        loss = grounding_loss(network, features, shares)
        loss.backward()
        optimiser.step()
    assert loss < 0.5 * before
    position, text = network.prompt_encoder.dense_pe(), network.encode_text(["liver", "spleen"])
    with torch.no_grad():
        liver, spleen = network.mask_decoder.grounding.of_all(features, position, text)[0]
    assert (liver[:, :4] > 0).float().mean() > 0.9
    assert (liver[:, 4:] < 0).float().mean() > 0.9
    assert (spleen < 0).all()


def test_no_known_name_gives_no_loss(network):
    """Breaks if a step without named images divides by none."""
    assert grounding_loss(network, network.encode_image(torch.randn(1, 3, SIDE, SIDE)), [{}]) is None


def test_a_network_that_does_not_ground_is_refused():
    """Breaks if the published network, which has no such head, fails inside."""
    network = imis_net_vit_b(64, decoder_dim=256, with_trunk=False)
    with pytest.raises(DatasetError, match="does not ground text"):
        grounding_loss(network, (), [{}])
