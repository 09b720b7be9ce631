"""One training step's interaction: encoded once, corrected K times, everything that should learn does."""

import numpy as np
import pytest
import torch

from imis_net.errors import DatasetError
from imis_net.losses import InteractiveLoss
from imis_net.networks.build import imis_net_compact
from imis_net.networks.image_encoder import ImageEncoderViT
from imis_net.networks.imis_net import IMISNet
from imis_net.networks.mask_decoder import MaskDecoder
from imis_net.networks.prompt_encoder import PromptEncoder
from imis_net.networks.text_encoder import CategoryTextEncoder
from imis_net.training.interactive_step import InteractionPolicy, InteractiveStep

SIDE = 64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return imis_net_compact(image_size=SIDE).train()


@pytest.fixture
def targets() -> torch.Tensor:
    targets = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    targets[0, 10:30, 5:40] = True
    targets[1, 40:60, 40:60] = True
    return targets


def run(network, targets, texts=None, **policy):
    prompts = []
    original = network.predict_masks

    def recorded(features, **prompt):
        prompts.append(prompt)
        return original(features, **prompt)

    network.predict_masks = recorded
    try:
        encoded = network.encode_image(torch.randn(1, 3, SIDE, SIDE))
        step = InteractiveStep(network, InteractionPolicy(**policy), InteractiveLoss())
        loss, dices = step(encoded, targets, texts, np.random.default_rng(0))
    finally:
        del network.predict_masks
    return loss, dices, prompts


def test_image_is_encoded_once_for_all_rounds(network, targets):
    """Breaks if a corrective round encodes the image again."""
    runs = []
    handle = network.image_encoder.register_forward_hook(lambda *_: runs.append(1))
    _, dices, prompts = run(network, targets, first_prompts={"click": 1.0}, num_rounds=8)
    handle.remove()
    assert len(runs) == 1
    assert len(dices) == len(prompts) == 9


@pytest.mark.parametrize(("keep_clicks", "expected"), [(True, [1, 2, 3]), (False, [1, 1, 1])])
def test_clicks_add_up_only_when_asked(network, targets, keep_clicks, expected):
    """Breaks if the viewers' way (all clicks each time) and the paper's (new click and mask) are mixed up."""
    _, _, prompts = run(network, targets, first_prompts={"click": 1.0}, num_rounds=2, keep_clicks=keep_clicks)
    assert [p["point_coords"].shape[1] for p in prompts] == expected


@pytest.mark.parametrize(("probability", "has_mask"), [(1.0, True), (0.0, False)])
def test_previous_mask_is_fed_back(network, targets, probability, has_mask):
    """Breaks if the previous low-res mask is not a prompt of the next round."""
    _, _, prompts = run(network, targets, first_prompts={"box": 1.0}, num_rounds=1, mask_probability=probability)
    assert prompts[0]["low_res_masks"] is None
    assert (prompts[1]["low_res_masks"] is not None) == has_mask


def test_text_comes_only_with_names(network, targets):
    """Breaks if unnamed targets get a text prompt."""
    for seed_prompts in ({"text": 1.0, "box": 1.0}, {"text+click": 5.0, "box": 1.0}):
        _, _, prompts = run(network, targets, first_prompts=seed_prompts, num_rounds=0)
        assert prompts[0]["text"] is None
    _, _, prompts = run(network, targets, ["liver", "spleen"], first_prompts={"text": 1.0}, num_rounds=0)
    assert prompts[0]["text"] is not None


def test_gradients_reach_neck_clicks_and_corners(network, targets):
    """Breaks if the embedding is detached or prompt embeddings lose their registration, as in IMIS-Bench."""
    network.zero_grad()
    loss, _, _ = run(network, targets, first_prompts={"box+click": 1.0}, num_rounds=1, keep_clicks=True)
    loss.backward()
    for parameter in (
        network.image_encoder.neck[2].weight,
        network.image_encoder.trunk.conv_stem.weight,
        network.prompt_encoder.point_embeddings[1].weight,
        network.prompt_encoder.point_embeddings[2].weight,
        network.prompt_encoder.dense.to_4[0].weight,
    ):
        assert parameter.grad.abs().sum() > 0


def test_empty_targets_are_refused(network, targets):
    """Breaks if a target without a pixel reaches the loss."""
    targets[1] = False
    with pytest.raises(DatasetError, match="empty target"):
        run(network, targets, first_prompts={"box": 1.0}, num_rounds=0)


def test_a_perfect_mask_gets_a_confirming_click(network, targets):
    """Breaks if a target without error is left without a click, so that targets no longer fit one call."""
    step = InteractiveStep(network, InteractionPolicy({"click": 1.0}), InteractiveLoss())
    predicted = torch.stack([targets[0], torch.zeros_like(targets[1])])
    nothing = dict.fromkeys(("point_coords", "point_labels", "boxes", "text", "low_res_masks"))
    prompt = step._next_prompt(nothing, torch.zeros(2, 1, 16, 16), predicted, targets, [np.random.default_rng(0)] * 2)
    assert prompt["point_labels"].tolist() == [[1], [1]]
    for (x, y), target in zip(prompt["point_coords"][:, 0].long().tolist(), targets, strict=True):
        assert target[y, x]


def test_neck_learns_and_a_frozen_trunk_does_not():
    """Breaks if freezing the trunk also cuts the neck off, or the trunk learns against the paper's setting."""
    torch.manual_seed(0)
    dim = 64
    network = IMISNet(
        ImageEncoderViT(embed_dim=32, depth=1, num_heads=2, global_attn_indexes=(0,), out_dim=dim),
        PromptEncoder(dim, SIDE),
        MaskDecoder(dim, mlp_dim=64),
        CategoryTextEncoder(("liver",), dim=dim),
        torch.nn.Linear(dim, dim),
        name="tiny",
    )
    network.image_encoder.trunk.requires_grad_(False)
    targets = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    targets[0, 10:30, 5:40] = True
    loss, _, _ = run(network, targets, first_prompts={"click": 1.0}, num_rounds=2, keep_clicks=True)
    loss.backward()
    assert all(p.grad is None for p in network.image_encoder.trunk.parameters())
    for learning in (network.image_encoder.neck, network.prompt_encoder.mask_downscaling):
        assert all(p.grad.abs().sum() > 0 for p in learning.parameters())
    assert network.prompt_encoder.point_embeddings[1].weight.grad.abs().sum() > 0


def test_only_text_without_names_is_refused(network, targets):
    """Breaks if a policy of text alone meets an unnamed example and fails inside numpy."""
    with pytest.raises(DatasetError, match="no first prompt"):
        run(network, targets, first_prompts={"text": 1.0}, num_rounds=0)


def test_images_that_share_a_call_get_what_each_gets_alone(network, targets):
    """Breaks if a target meets another image's features."""
    network.eval()
    features = network.encode_image(torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    step = InteractiveStep(network, InteractionPolicy({"box": 1.0}, 0, max_offset_px=0), InteractiveLoss())
    both = torch.cat([targets, targets.flip(2)])
    ((together, dice),) = step.rounds(features, both, None, generators(2), [(1.0, 1.0)] * 2)
    alone = [
        step(tuple(f[i : i + 1] for f in features), both[2 * i : 2 * i + 2], None, generators(1)[0]) for i in (0, 1)
    ]
    network.train()
    torch.testing.assert_close(together, (alone[0][0] + alone[1][0]) / 2, rtol=1e-4, atol=1e-6)
    assert dice == pytest.approx((alone[0][1][0] + alone[1][1][0]) / 2, abs=1e-3)


def test_each_images_own_pixels_move_its_boxes(network, targets):
    """Breaks if the annotator of one image misses by the pixels of another."""
    step = InteractiveStep(network, InteractionPolicy({"box": 1.0}), InteractiveLoss())
    sizes = [(0.0, 0.0)] * 2 + [(0.5, 0.25)] * 2
    boxes = step._first_prompt(torch.cat([targets, targets]), None, generators(4), sizes)["boxes"]
    moved = boxes[2:] - boxes[:2]
    assert boxes[:2].tolist() == [[5, 10, 39, 29], [40, 40, 59, 59]]
    assert moved.any(1).all()
    assert (moved / torch.tensor([0.5, 0.25] * 2) % 1 == 0).all()


def generators(number: int) -> list[np.random.Generator]:
    return [np.random.default_rng(7 + i) for i in range(number)]
