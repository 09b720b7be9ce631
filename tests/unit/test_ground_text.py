"""Names learned on features that are encoded once."""

import numpy as np
import pytest
import torch

from imis_net.errors import DatasetError
from imis_net.networks.build import imis_net_compact
from imis_net.training.dataset import Record
from imis_net.training.ground_text import encode_views, ground_text

SIDE = 64


def record(names: dict[int, str], source: str = "complete") -> Record:
    """A dark half with label 1, and a bright one with label 2."""
    label_map = np.ones((SIDE, SIDE), np.uint16)
    label_map[:, SIDE // 2 :] = 2
    image = np.repeat((label_map * 100).astype(np.uint8)[..., None], 3, axis=2)
    return Record("case", source, source, "CT", image, ((label_map, names),))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return imis_net_compact(image_size=SIDE).eval()


def test_each_name_learns_its_place_and_nothing_else_changes(network):
    """Breaks if gradients miss the grounding head, reach the frozen rest, or names are taken for one another."""
    frozen = {k: v.clone() for k, v in network.state_dict().items() if "grounding" not in k}
    rng = np.random.default_rng(0)
    views = encode_views(network, [record({1: "liver", 2: "spleen"})], 4, [], rng)
    assert [v.names for v in views] == [("liver", "spleen")] * 4
    curve = ground_text(network, views, 200, rng)
    assert curve[-1] > max(0.8, curve[0])
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in frozen.items())


def test_a_completely_labelled_source_says_what_is_absent(network):
    """Breaks if a name of another image of the source is not taught to be absent, or is where the source is partial."""
    records = [record({1: "liver"}), record({2: "kidney_left"}), record({1: "spleen"}, "partial")]
    views = encode_views(network, records, 1, ["complete"], np.random.default_rng(0))
    assert [v.names for v in views] == [("left kidney", "liver"), ("left kidney", "liver"), ("spleen",)]
    assert [v.truth.flatten(1).any(1).tolist() for v in views] == [[False, True], [True, False], [True]]


def test_records_without_a_known_name_are_refused(network):
    """Breaks if it trains on nothing without a word."""
    with pytest.raises(DatasetError, match="no target with a known name in 1 records"):
        encode_views(network, [record({1: "no such thing"})], 1, [], np.random.default_rng(0))
