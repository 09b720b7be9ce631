"""Graphs that answer as torch does, and are refused where they do not."""

from itertools import product

import numpy as np
import pytest
import torch

from imis_net import export as module
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.errors import ExportError
from imis_net.export import export, graphs
from imis_net.networks.build import imis_net_compact
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter

SIDE = 64
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def local() -> TorchSegmenter:
    torch.manual_seed(0)
    return TorchSegmenter(imis_net_compact(SIDE))


@pytest.fixture(scope="module")
def folder(local, tmp_path_factory):
    made = tmp_path_factory.mktemp("graphs") / "made"
    export(local.network, made)
    return made


def test_every_combination_of_prompts_gives_the_same_mask(local, folder):
    """Breaks if a graph drops or pads a part of the prompt, or embeddings of torch and of the graphs differ."""
    remote = GraphSegmenter(local, folder, threads=1)
    ours, theirs = local.encode_image(IMAGE), remote.encode_image(IMAGE)
    clicks = {"point_coords": np.array([[30, 20], [5, 6]]), "point_labels": np.array([1, 0])}
    low_res = local.predict(ours, Prompt(**clicks)).low_res_mask
    parts = [
        [{}, clicks],
        [{}, {"box": np.array([10, 8, 60, 40], np.float32)}],
        [{}, {"text": "liver"}],
        [{}, {"low_res_mask": low_res}],
    ]
    given = [{k: v for part in chosen for k, v in part.items()} for chosen in product(*parts)]
    prompts = [Prompt(**one) for one in given if one.keys() - {"low_res_mask"}]
    assert len(prompts) == 14
    for expected, got in zip(local.predict_batch(ours, prompts), remote.predict_batch(theirs, prompts), strict=True):
        np.testing.assert_allclose(got.low_res_mask, expected.low_res_mask, atol=1e-3)
        assert got.iou_prediction == pytest.approx(expected.iou_prediction, abs=1e-4)
    assert (remote.weights_digest, remote.encoder_digest) == (local.weights_digest, local.encoder_digest)
    swapped = remote.predict(ours, prompts[0])
    np.testing.assert_allclose(swapped.low_res_mask, local.predict(ours, prompts[0]).low_res_mask, atol=1e-3)


def test_objects_share_one_embedding(local, folder):
    """Breaks if the embedding is an input per target, so that eight objects copy it eight times."""
    decoder = next(g for g in graphs(local.network) if g.name == module.DECODER)
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

    monkeypatch.setattr(module, "write_graph", wrong)
    with pytest.raises(ExportError, match=r"trunk: .* differs from torch by"):
        export(local.network, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_its_graphs_is_refused(local, folder, tmp_path):
    """Breaks if half a folder, or a damaged file, is served."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"trunk\.onnx is missing"):
        GraphSegmenter(local, tmp_path / "empty")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "trunk.onnx").write_bytes((folder / "trunk.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"trunk\.onnx: cannot be loaded"):
        GraphSegmenter(local, tmp_path / "torn")
    with pytest.raises(ExportError, match="exists already"):
        export(local.network, folder)


def test_what_is_not_finite_is_no_parity():
    """Breaks if NaN on either side counts as equal, which would hide every later difference too."""
    one, nan = np.ones(2), np.array([1, np.nan])
    assert module.relative_error(one, one) == 0
    assert module.relative_error(nan, one) == module.relative_error(one, nan) == np.inf
    assert module.relative_error(one, np.ones(3)) == np.inf
