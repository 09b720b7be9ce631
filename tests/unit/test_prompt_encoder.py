"""The prompt encoder: tokens, their order, and the dense map."""

import pytest
import torch

from imis_net.networks.dense_prompt_encoder import DensePromptEncoder
from imis_net.networks.point_kinds import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT
from imis_net.networks.prompt_encoder import PromptEncoder

SIDE, DIM = 256, 32


@pytest.fixture
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(DIM, SIDE)


def by_assignment(encoder: PromptEncoder, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Click embeddings as Segment Anything writes them, by boolean assignment."""
    embedded = encoder.pe_layer((coords + 0.5) / SIDE)
    embedded[labels == -1] = 0.0
    embedded[labels == -1] += encoder.not_a_point_embed.weight[0]
    embedded[labels == 0] += encoder.point_embeddings[0].weight[0]
    embedded[labels == 1] += encoder.point_embeddings[1].weight[0]
    return embedded


@torch.no_grad()
def test_gather_form_is_bit_equal_to_assignment(encoder):
    """Breaks if a label gets another label's embedding, or a padding point keeps its position."""
    coords, labels = torch.rand(2, 3, 2) * SIDE, torch.tensor([[1, 0, -1], [0, -1, 1]])
    boxes = torch.tensor([[10.0, 20, 100, 120]]).expand(2, 4)
    sparse, _ = encoder(coords, labels, boxes, None, None)
    assert sparse[:, :3].equal(by_assignment(encoder, coords, labels))


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_clicks", "box", "text", "expected"),
    [(2, False, False, 3), (2, True, False, 4), (0, True, False, 2), (0, False, True, 1), (1, True, True, 4)],
)
def test_padding_point_only_without_a_box(encoder, num_clicks, box, text, expected):
    """Breaks if the padding point is added beside a box, or left out without one: either changes every mask."""
    coords = torch.zeros(1, num_clicks, 2) if num_clicks else None
    labels = torch.ones(1, num_clicks, dtype=torch.long) if num_clicks else None
    boxes = torch.tensor([[0.0, 0, 9, 9]]) if box else None
    embedded = torch.zeros(1, DIM) if text else None
    assert encoder(coords, labels, boxes, embedded, None)[0].shape == (1, expected, DIM)


@torch.no_grad()
def test_position_encoding_takes_x_first(encoder):
    """Breaks if the grid's encoding and a click's swap x and y."""
    grid = encoder.pe_layer.grid(16)
    click = encoder.pe_layer(torch.tensor([(3 + 0.5) / 16, (9 + 0.5) / 16]))  # column 3, row 9
    torch.testing.assert_close(grid[0, :, 9, 3], click)


@torch.no_grad()
def test_dense_map_is_shared_without_masks(encoder):
    """Breaks if the no-mask embedding is copied for every prompt."""
    _, (dense,) = encoder(None, None, torch.zeros(5, 4), None, None)
    assert dense.shape == (1, DIM, 16, 16)
    _, (dense,) = encoder(None, None, None, None, torch.zeros(5, 1, 64, 64))
    assert dense.shape == (5, DIM, 16, 16)


@torch.no_grad()
def test_drawn_prompts_lie_where_they_are():
    """Breaks if drawn clicks or boxes are mirrored, swapped or drawn under another label."""
    dense = DensePromptEncoder(SIDE, (8, 4, 2))
    coords = torch.tensor([[[200.0, 40.0], [20.0, 220.0], [100.0, 20.0], [220.0, 60.0]]])
    maps = dense.draw(coords, torch.tensor([[FOREGROUND, BACKGROUND, TOP_LEFT, BOTTOM_RIGHT]]), None)[0]
    foreground, background, box = maps[0], maps[2], maps[4]
    assert divmod(int(foreground.argmax()), 64) == (10, 50)
    assert divmod(int(background.argmax()), 64) == (55, 5)
    assert box[10, 40] > 0.9
    assert box[40, 10] < 0.1
    assert maps[7].abs().sum() == 0


@torch.no_grad()
def test_padding_clicks_are_not_drawn():
    """Breaks if a "no point" at (0, 0) is drawn as a click in the corner."""
    dense = DensePromptEncoder(SIDE, (8, 4, 2))
    maps = dense.draw(torch.zeros(1, 1, 2), torch.tensor([[NOT_A_POINT]]), None)
    assert maps.abs().max() < 1e-20


def test_what_is_worked_out_before_is_of_the_weights_that_are_loaded():
    """Breaks if a prepared encoder keeps the position encoding of weights that it no longer has."""
    first, second = (PromptEncoder(32, 64) for _ in range(2))
    computed = second.dense_pe()
    first.prepare()
    assert torch.equal(first.dense_pe(), first.pe_layer.grid(4))
    first.load_state_dict(second.state_dict())
    assert torch.equal(first.dense_pe(), computed)
    assert not any("kept" in key for key in first.state_dict())
