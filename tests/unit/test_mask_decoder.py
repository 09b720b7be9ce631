"""The mask decoder's outputs: shapes, the choice among candidates, the text's share."""

import pytest
import torch

from imis_net.networks.mask_decoder import MaskDecoder, MaskPrediction

DIM, SIDE = 32, 4


@pytest.fixture
def decoder() -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(DIM, mlp_dim=64).eval()


def run(decoder: MaskDecoder, num_targets: int, text: torch.Tensor | None = None) -> MaskPrediction:
    generator = torch.Generator().manual_seed(1)
    features, pe, dense = (torch.randn(1, DIM, SIDE, SIDE, generator=generator) for _ in range(3))
    sparse = torch.randn(num_targets, 2, DIM, generator=generator)
    return decoder((features,), pe, sparse, (dense,), text)


@torch.no_grad()
def test_shapes_are_those_of_the_contract(decoder):
    """Breaks if a head reads another token than its own or the masks are not four times as fine."""
    output = run(decoder, 3)
    assert output.low_res_masks.shape == (3, 4, 4 * SIDE, 4 * SIDE)
    assert output.iou_predictions.shape == (3, 4)
    assert output.semantic_embeddings.shape == (3, 4, 512)
    assert output.tokens.shape == (3, 9 + 2, DIM)
    assert output.src.shape == (3, SIDE * SIDE, DIM)


def test_best_never_takes_the_unambiguous_mask():
    """Breaks if the first mask token, which is not trained here, wins by its predicted IoU."""
    masks = torch.arange(8.0).view(2, 4, 1, 1)
    iou = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.9, 0.5, 0.4, 0.1]])
    low_res, best_iou, index = MaskPrediction(masks, iou, iou, iou, iou).best()
    assert index.tolist() == [2, 1]
    assert low_res.flatten().tolist() == [2, 5]
    assert best_iou.tolist() == pytest.approx([0.3, 0.5])


def test_a_mask_that_holds_too_little_is_chosen_last():
    """Breaks if a box is answered with nothing while a candidate fills it, or token 0 goes before one of the three."""
    masks = torch.full((3, 4, 2, 2), -1.0)
    masks[0, 0], masks[1, 0], masks[1, 3] = 1, 1, 1
    iou = torch.tensor([[0.1, 0.9, 0.3, 0.2]]).repeat(3, 1)
    answer = MaskPrediction(masks, iou, iou, iou, iou)
    assert answer.best(torch.full((3,), 3.0))[2].tolist() == [0, 3, 1]
    assert answer.best(torch.zeros(3))[2].tolist() == answer.best()[2].tolist() == [1, 1, 1]


def test_a_mask_with_an_edge_is_preferred_to_one_without():
    """Breaks if stability is taken of another candidate, around another threshold, or outweighs what it is to weigh."""
    sure, vague = torch.full((4, 4), -5.0), torch.full((4, 4), -1.2)
    sure[:2], vague[:2] = 5.0, 0.2
    masks = torch.stack([vague, vague, sure, vague])[None].expand(2, 4, 4, 4)
    rated = torch.tensor([[0.9, 0.62, 0.50, 0.1], [0.9, 0.80, 0.50, 0.1]])
    answer = MaskPrediction(masks, rated, rated, rated, rated)
    assert answer.stability(0.0).tolist() == [[0, 0, 1, 0]] * 2
    assert answer.stability(-1.4).tolist() == [[0.5, 0.5, 1, 0.5]] * 2
    assert answer.best(stability_weight=0.2)[2].tolist() == [2, 1]
    assert answer.best(stability_weight=0.2, threshold=-1.4)[2].tolist() == [1, 1]


@torch.no_grad()
def test_text_adds_one_map_to_all_four_masks(decoder):
    """Breaks if the text term reaches one mask only, another prompt's mask, or scales the others."""
    text = torch.randn(3, DIM, generator=torch.Generator().manual_seed(2))
    added = run(decoder, 3, text).low_res_masks - run(decoder, 3).low_res_masks
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(added, added[:, :1].expand_as(added), atol=1e-4, rtol=1e-3)
    swapped = run(decoder, 3, text.flip(0)).low_res_masks - run(decoder, 3).low_res_masks
    assert (swapped[0] - added[0]).abs().max() > 1e-3
    torch.testing.assert_close(swapped[1], added[1])


@torch.no_grad()
def test_a_graph_draws_the_masks_that_torch_draws(decoder, monkeypatch):
    """Breaks if the pixels of a cell come back in another order than the transposed convolutions write them."""
    expected = run(decoder, 3).low_res_masks
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(run(decoder, 3).low_res_masks, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_many_targets_are_drawn_each_from_its_own_maps():
    """Breaks if targets that are drawn a few at a time get the maps of others, or shared maps are split among them."""
    torch.manual_seed(0)
    decoder = MaskDecoder(DIM, mlp_dim=64, use_fine_features=True).eval()
    sides = (SIDE, 2 * SIDE, 4 * SIDE)
    features = tuple(
        torch.randn(1, dim, side, side) for dim, side in zip((DIM, DIM // 4, DIM // 8), sides, strict=True)
    )
    dense = tuple(torch.randn(5, *f.shape[1:]) for f in features)
    sparse, pe = torch.randn(5, 2, DIM), torch.randn(1, DIM, SIDE, SIDE)
    together = decoder(features, pe, sparse, dense, None).low_res_masks
    for i in range(5):
        alone = decoder(features, pe, sparse[i : i + 1], tuple(d[i : i + 1] for d in dense), None).low_res_masks
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
