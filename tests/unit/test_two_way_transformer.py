"""The two-way transformer against a direct calculation, prompt by prompt."""

import math

import pytest
import torch
from torch import Tensor

from imis_net.networks.two_way_transformer import Attention, TwoWayTransformer


def attention_by_hand(layer: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One prompt, head by head: [N, C], [M, C], [M, C] -> [N, C]."""
    q, k, v = layer.q_proj(q), layer.k_proj(k), layer.v_proj(v)
    heads = [
        torch.softmax(a @ b.T / math.sqrt(a.shape[1]), dim=1) @ c
        for a, b, c in zip(*(x.chunk(layer.num_heads, dim=1) for x in (q, k, v)), strict=True)
    ]
    return layer.out_proj(torch.cat(heads, dim=1))


@torch.no_grad()
@pytest.mark.parametrize("has_few_keys", [False, True])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(3, 3), (3, 1), (1, 3)])
def test_attention_is_softmax_of_scaled_products(num_queries, num_keys, has_few_keys):
    """Breaks if heads are cut otherwise, the scale takes the outer width, or a shared side mixes prompts up."""
    torch.manual_seed(0)
    layer = Attention(16, 4, downsample_rate=2, has_few_keys=has_few_keys)
    q, k, v = torch.randn(num_queries, 5, 16), torch.randn(num_keys, 9, 16), torch.randn(num_keys, 9, 16)
    out = layer(q, k, v)
    for b in range(3):
        own = (x[b % x.shape[0]] for x in (q, k, v))
        torch.testing.assert_close(out[b], attention_by_hand(layer, *own))


@torch.no_grad()
def test_one_image_for_all_prompts_equals_a_copy_for_each():
    """Breaks if leaving the image at batch 1 changes a mask."""
    torch.manual_seed(0)
    transformer = TwoWayTransformer(32, mlp_dim=64)
    image, image_pe, tokens = torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(3, 6, 32)
    shared = transformer(image, image_pe, tokens)
    copied = transformer(image.expand(3, -1, -1, -1), image_pe, tokens)
    alone = [transformer(image, image_pe, tokens[b : b + 1]) for b in range(3)]
    for part in (0, 1):
        torch.testing.assert_close(shared[part], copied[part])
        torch.testing.assert_close(shared[part], torch.cat([a[part] for a in alone]))


@torch.no_grad()
def test_order_of_prompt_tokens_does_not_matter():
    """Breaks if a token's place in the row means anything: clicks are a set."""
    torch.manual_seed(0)
    transformer = TwoWayTransformer(32, mlp_dim=64)
    image, image_pe, tokens = torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(1, 6, 32)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight, shuffled = transformer(image, image_pe, tokens), transformer(image, image_pe, tokens[:, order])
    torch.testing.assert_close(straight[0][:, order], shuffled[0])
    torch.testing.assert_close(straight[1], shuffled[1])
