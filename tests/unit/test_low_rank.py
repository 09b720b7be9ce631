"""Adapters on a frozen trunk: nothing at the start, part of the plain weights at the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imis_net.checkpoint import TRUNK
from imis_net.networks.build import imis_net_compact
from imis_net.networks.image_encoder import ViTTrunk
from imis_net.training.low_rank import MAX_RANK, add_adapters, check_rank, merge_adapters


def vit() -> nn.Module:
    trunk = ViTTrunk(embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,))
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.1)
    return trunk


TRUNKS = {"compact": lambda: imis_net_compact(64).image_encoder.trunk, "vit": vit}
ADAPTED = {"compact": {"conv_pw", "conv_pwl"}, "vit": {"qkv", "proj", "lin1", "lin2"}}


@pytest.fixture(params=TRUNKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()  # with gradients, torch attends by another kernel
def answers(trunk: nn.Module) -> list[torch.Tensor]:
    maps = trunk(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    return [maps] if isinstance(maps, torch.Tensor) else list(maps)


def test_adapters_begin_as_nothing_and_end_in_the_plain_weights(kind: str) -> None:
    """Breaks if fine-tuning starts from another model than the served one, or a checkpoint answers otherwise than what
    was validated or has keys that no reader knows."""
    torch.manual_seed(0)
    trunk = TRUNKS[kind]().eval().requires_grad_(False)
    plain = {k: v.clone() for k, v in trunk.state_dict().items()}
    types = [type(m) for m in trunk.modules()]
    before = answers(trunk)
    add_adapters(trunk, 4, seed=0)
    assert all(a.equal(b) for a, b in zip(answers(trunk), before, strict=True))
    adapters = {k: p for k, p in trunk.named_parameters() if p.requires_grad}
    assert {name.split(".parametrizations")[0].rpartition(".")[2] for name in adapters} == ADAPTED[kind]
    for parameter in adapters.values():
        nn.init.normal_(parameter, std=0.05)
    changed = answers(trunk)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(changed, before, strict=True))
    merge_adapters(trunk)
    for merged, parametrised in zip(answers(trunk), changed, strict=True):
        torch.testing.assert_close(merged, parametrised, rtol=1e-5, atol=1e-5)
    state = trunk.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in plain.items()}
    assert [type(m) for m in trunk.modules()] == types
    moved = {key.split(".")[-2] for key in plain if not state[key].equal(plain[key])}
    assert moved == ADAPTED[kind]


def test_the_seed_decides_where_adapters_begin() -> None:
    """Breaks if two runs on the same labels make different candidates."""
    begun = []
    for seed in (0, 0, 1):
        trunk = vit()
        add_adapters(trunk, 2, seed)
        begun.append(torch.cat([p.flatten() for k, p in trunk.named_parameters() if "parametrizations.weight.0" in k]))
    assert begun[0].equal(begun[1])
    assert not begun[0].equal(begun[2])


@pytest.mark.parametrize("rank", [-1, MAX_RANK + 1])
def test_what_is_no_rank_is_refused(rank: int) -> None:
    """Breaks if a rank of a million is tried, or a negative one ends in a traceback of torch's."""
    with pytest.raises(ValueError, match=f"got {rank}, expected a rank from 1 to {MAX_RANK}"):
        check_rank(rank)
    assert [check_rank(ok) for ok in (0, 1, MAX_RANK)] == [0, 1, MAX_RANK]


def test_without_a_trunk_there_is_nothing_to_adapt() -> None:
    """Breaks if fine-tuning on somebody else's trunk says that it adapted one."""
    headless = imis_net_compact(64, with_trunk=False)
    assert not any(key.startswith(TRUNK) for key in headless.state_dict())
    with pytest.raises(ValueError, match="for 0 layers"):
        add_adapters(headless.image_encoder.trunk, 4, seed=0)
