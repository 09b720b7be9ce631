"""Every graph of the shipped model beside torch."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from imis_net.adapters.onnx import OnnxSegmenter
from imis_net.errors import ExportError
from imis_net.export import export
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_every_combination_of_prompts_gives_the_same_mask(
    default_segmenter: TorchSegmenter, default_graphs: Path
) -> None:
    """Breaks if a graph drops or pads a part of the prompt, or embeddings of torch and of the graphs differ."""
    local, remote = default_segmenter, OnnxSegmenter(default_segmenter, default_graphs, threads=1)
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


def test_a_torn_graph_is_refused_and_a_whole_folder_kept(
    default_segmenter: TorchSegmenter, default_graphs: Path, tmp_path: Path
) -> None:
    """Breaks if a damaged file is served, or graphs that serve are written over."""
    (tmp_path / "trunk.onnx").write_bytes((default_graphs / "trunk.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"trunk\.onnx: cannot be loaded"):
        OnnxSegmenter(default_segmenter, tmp_path)
    with pytest.raises(ExportError, match="exists already"):
        export(default_segmenter.network, default_graphs)
