"""Graphs are refused where they do not answer as torch does; that they do: tests/integration/test_graphs.py."""

import numpy as np
import pytest
import torch

from imis_net import export as module
from imis_net.adapters.graph_runtimes import OnnxRuntimeGraph
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.errors import ExportError
from imis_net.export import export, graphs
from imis_net.networks.build import imis_net_compact
from imis_net.segmenter import TorchSegmenter
from imis_net.serving.precisions import half_precision


@pytest.fixture(scope="module")
def local() -> TorchSegmenter:
    torch.manual_seed(0)
    return TorchSegmenter(imis_net_compact(64))


def test_objects_share_one_embedding(local):
    """Breaks if the embedding is an input per target, so that eight objects copy it eight times."""
    decoder = next(g for g in graphs(local.network) if g.name == module.decoder_name(False, False))
    assert decoder.shared == {"embedding", "fine_8", "fine_4"}
    assert all(decoder.at(8, 3)[name].shape[0] == 1 for name in decoder.shared)


def test_a_graph_that_differs_is_refused_and_leaves_nothing(local, tmp_path, monkeypatch):
    """Breaks if a wrong graph is kept, or half a folder stands where a whole one is expected."""
    write = module.write_graph

    def wrong(graph, folder):
        with torch.no_grad():
            for parameter in graph.module.parameters():
                parameter.add_(0.01)
        try:
            return write(graph, folder)
        finally:
            with torch.no_grad():
                for parameter in graph.module.parameters():
                    parameter.sub_(0.01)

    neck = [g for g in graphs(local.network) if g.name == module.NECK]  # traced soonest
    monkeypatch.setattr(module, "graphs", lambda network: neck)
    monkeypatch.setattr(module, "write_graph", wrong)
    with pytest.raises(ExportError, match=r"neck: .* differs from torch by"):
        export(local.network, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_one_file_lie_beside_it(local, tmp_path, monkeypatch):
    """Breaks if a trunk of more than 2 GB cannot be written, or its weights stay behind when a folder is made of it."""
    neck = [g for g in graphs(local.network) if g.name == module.NECK]
    monkeypatch.setattr(module, "graphs", lambda network: neck)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    export(local.network, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("neck*")} == {"neck.onnx", "neck.onnx.data"}
    half_precision(tmp_path / "out", tmp_path / "half")
    inputs = {name: value.numpy() for name, value in neck[0].inputs.items()}
    with torch.no_grad():
        want = neck[0].module(*neck[0].inputs.values())[0].numpy()
    got = OnnxRuntimeGraph(tmp_path / "half" / "neck.onnx", 1).run(inputs)[0]
    assert module.relative_error(got, want) < 1e-2


def test_a_folder_without_its_graphs_is_refused(local, tmp_path):
    """Breaks if half a folder is served."""
    with pytest.raises(ExportError, match=r"trunk\.onnx is missing"):
        GraphSegmenter(local, tmp_path)


def test_what_is_not_finite_is_no_parity():
    """Breaks if NaN on either side counts as equal, which would hide every later difference too."""
    one, nan = np.ones(2), np.array([1, np.nan])
    assert module.relative_error(one, one) == 0
    assert module.relative_error(nan, one) == module.relative_error(one, nan) == np.inf
    assert module.relative_error(one, np.ones(3)) == np.inf
