"""The published architecture's graphs, on fewer and narrower layers of the same classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imis_net import export
from imis_net.adapters.graph_runtimes import OnnxRuntimeGraph
from imis_net.networks import build
from imis_net.networks.text_encoder import ClipTextEncoder
from imis_net.serving.builds import graphs_of
from imis_net.serving.engines import AHEAD_OF_TIME, compile_graph

SIDE_PX = 256
"""Sixteen tokens a side: several windows, padded; tables of positions resized."""
NAMES = (export.TRUNK, export.NECK, export.decoder_name(has_text=False, has_mask=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of two narrow layers, one of windows and one global, and the narrowest decoder."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "VIT_B", build.ViTSize(embed_dim=32, depth=2, num_heads=2, global_attn_indexes=(1,)))
        network = build.imis_net_vit_b(SIDE_PX, decoder_dim=256).eval()
    with torch.no_grad():
        for name, value in network.image_encoder.trunk.named_parameters():
            if "pos" in name:  # zeros before training, which would hide whatever is done with them
                value.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("vit") / "graphs"
    folder.mkdir()
    for graph in export.graphs(network):
        if graph.name in NAMES:
            export.check(export.compare(graph, export.write_graph(graph, folder)), export.TOLERANCE)
    return folder


def test_the_published_architecture_exports(folder: Path) -> None:
    """Breaks if a part of it is an operation without an ONNX form, or its graph differs from torch."""
    assert {path.stem for path in folder.glob("*.onnx")} == set(NAMES)


def test_the_text_tower_takes_any_number_of_names(tmp_path: Path) -> None:
    """Breaks if tracing fixes the batch, or the end of a name is found by an operation without an ONNX form."""
    tower = ClipTextEncoder().eval()
    tower.tower.transformer.resblocks = tower.tower.transformer.resblocks[:1]
    tokens = tower.tokenize(["liver", "right adrenal gland"])
    graph = export.Graph("text", export._Function(tower, tower.forward), {export.TOKENS: tokens}, ("text",))
    path = export.write_graph(graph, tmp_path)
    three = tower.tokenize(["right adrenal gland", "liver", "a cyst of the left kidney"])
    with torch.no_grad():
        expected = tower(three).numpy()
    got = OnnxRuntimeGraph(path).run({export.TOKENS: three.numpy()})[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_published_architecture_compiles_ahead_of_time(folder: Path, tmp_path: Path, precision: str) -> None:
    """Breaks if windows, resized tables give a graph that TensorRT does not take."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    for path in sorted(graphs_of(folder, precision).glob("*.onnx")):
        assert compile_graph(trt, path, AHEAD_OF_TIME, tmp_path)
