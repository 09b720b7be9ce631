"""The published architecture's graphs, on fewer and narrower layers of the same classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imis_net import export
from imis_net.adapters.graph_runtimes import OnnxRuntimeGraph
from imis_net.networks import build
from imis_net.networks.imis_net import IMISNet
from imis_net.serving.builds import graphs_of
from imis_net.serving.engines import AHEAD_OF_TIME, compile_graph

NAMES = (export.TRUNK, export.NECK, export.TEXT_ENCODER, export.decoder_name(has_text=True, has_mask=True))
SIDE_PX = 256
"""Sixteen tokens a side: several windows, padded; tables of positions resized."""


@pytest.fixture(scope="module")
def network() -> IMISNet:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "VIT_B", build.ViTSize(embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,)))
        net = build.imis_net_vit_b(SIDE_PX).eval()
    net.text_encoder.tower.transformer.resblocks = net.text_encoder.tower.transformer.resblocks[:1]
    with torch.no_grad():
        for name, value in net.image_encoder.trunk.named_parameters():
            if "pos" in name:  # zeros before training, which would hide whatever is done with them
                value.normal_(std=0.2)
    return net


@pytest.fixture(scope="module")
def folder(network: IMISNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit") / "graphs"
    folder.mkdir()
    for graph in export.graphs(network):
        if graph.name in NAMES:
            export.check(export.compare(graph, export.write_graph(graph, folder)), export.TOLERANCE)
    return folder


def test_the_published_architecture_exports(folder: Path) -> None:
    """Breaks if a part of it is an operation without an ONNX form, or its graph differs from torch."""
    assert {path.stem for path in folder.glob("*.onnx")} == set(NAMES)


def test_a_name_ends_at_its_own_end(network: IMISNet, folder: Path) -> None:
    """Breaks if the graph reads a name's vector at another token than torch: names differ in length."""
    tokens = network.text_encoder.tokenize(["liver", "right adrenal gland"])
    with torch.no_grad():
        expected = network.embed_text(tokens).numpy()
    got = OnnxRuntimeGraph(folder / f"{export.TEXT_ENCODER}.onnx").run({export.TOKENS: tokens.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.abs(got[0] - got[1]).max() > 0.01


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_published_architecture_compiles_ahead_of_time(folder: Path, tmp_path: Path, precision: str) -> None:
    """Breaks if windows, resized tables or the decoder's width give a graph that TensorRT does not take."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    for path in sorted(graphs_of(folder, precision).glob("*.onnx")):
        if path.stem != export.TEXT_ENCODER:
            assert compile_graph(trt, path, AHEAD_OF_TIME, tmp_path)
