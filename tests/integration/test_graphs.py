"""Every graph of the shipped model beside torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch

from imis_net.adapters.graph_runtimes import DECODER, TEXT_ENCODER, Build, OnnxRuntimeGraph
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.errors import ExportError
from imis_net.evaluation.agreement import compare
from imis_net.export import POINT_COORDS, POINT_LABELS, export, relative_error, structure_of
from imis_net.images import read_volume
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter, load_segmenter
from imis_net.serving.builds import build_and_compare, graphs_of

SAMPLE = Path(__file__).resolve().parents[2] / "apps" / "imis" / "sample_studies" / "abdomen_ct_1.nii.gz"
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_combination_of_prompts_gives_the_same_mask(
    default_segmenter: TorchSegmenter, default_graphs: Path, backend: str
) -> None:
    """Breaks if a graph drops or pads a part of the prompt, or embeddings of torch and of the graphs differ."""
    local, remote = default_segmenter, GraphSegmenter(default_segmenter, default_graphs, Build(backend), threads=1)
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


def test_signals_are_handled_after_graphs_were_exchanged(default_graphs: Path) -> None:
    """Breaks if the signal that ends a server kills it: OpenVINO lends the thread that first loads a graph a stack for
    signals, and takes it away with the last graph of that loading."""
    program = """
import os, signal, sys
from pathlib import Path
from imis_net.adapters.graph_runtimes import OpenVinoGraph
served = [OpenVinoGraph(Path(sys.argv[1]), "fp32", 1) for version in range(2)]
del served[0]  # the old one first
del served[0]
signal.signal(signal.SIGTERM, lambda number, frame: print("told to end"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    command = [sys.executable, "-c", program, str(default_graphs / f"{TEXT_ENCODER}.onnx")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "told to end\n"), ended.stderr


def test_a_torn_graph_is_refused_and_a_whole_folder_kept(
    default_segmenter: TorchSegmenter, default_graphs: Path, tmp_path: Path
) -> None:
    """Breaks if a damaged file is served, or graphs that serve are written over."""
    (tmp_path / "trunk.onnx").write_bytes((default_graphs / "trunk.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"trunk\.onnx: cannot be loaded"):
        GraphSegmenter(default_segmenter, tmp_path)
    with pytest.raises(ExportError, match="exists already"):
        export(default_segmenter.network, default_graphs)


def test_retrained_weights_are_filled_in_without_tracing(
    default_graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a retrained decoder waits for a minute of tracing, or is answered for by the graphs before it."""
    retrained = load_segmenter()
    structure = structure_of(retrained.network)
    with torch.no_grad():
        retrained.network.mask_decoder.iou_token.weight.add_(0.1)
    assert structure_of(retrained.network) == structure
    (tmp_path / "before").symlink_to(default_graphs)
    monkeypatch.setattr("imis_net.export.write_graph", None)
    export(retrained.network, tmp_path / "after")
    retrained = TorchSegmenter(retrained.network)
    filled = GraphSegmenter(retrained, tmp_path / "after", threads=1)
    click = Prompt(point_coords=[[30, 20]], point_labels=[1])
    want = retrained.predict(retrained.encode_image(IMAGE), click)
    got = filled.predict(filled.encode_image(IMAGE), click)
    np.testing.assert_allclose(got.low_res_mask, want.low_res_mask, atol=1e-3)
    with torch.no_grad():
        retrained.network.image_encoder.trunk.conv_stem.weight.add_(0.1)
    assert structure_of(retrained.network) != structure


def test_a_precision_that_answers_differently_is_given_up_aloud(
    default_segmenter: TorchSegmenter, default_graphs: Path, tmp_path: Path
) -> None:
    """Breaks if a build that runs but is wrong gets to users, or nobody hears that it was given up."""
    digest = default_segmenter.weights_digest
    (tmp_path / digest).symlink_to(default_graphs)
    planted = tmp_path / f"{digest}-int8"
    shutil.copytree(default_graphs, planted)
    model = onnx.load(planted / f"{DECODER}.onnx")
    weight = next(t for t in model.graph.initializer if t.name.endswith("mask_tokens.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(0.8), weight.name))
    onnx.save(model, planted / f"{DECODER}.onnx")
    images = [read_volume(SAMPLE).slice_rgb(0)]
    said: list[str] = []
    wanted = Build("onnxruntime", "int8")
    got = build_and_compare(default_segmenter, wanted, tmp_path, images, 4, say=said.append)
    assert got == (Build("onnxruntime", "fp32"), tmp_path / digest)
    assert [(line.split(":")[0], line.endswith("REFUSED")) for line in said] == [
        ("onnxruntime int8", True),
        ("onnxruntime fp32", False),
    ]
    with pytest.raises(ExportError, match="regions for"):
        compare(default_segmenter, default_segmenter, [np.zeros((64, 64, 3), np.uint8)], 4)


def test_eight_bits_take_the_place_of_products_and_nearly_their_values(default_graphs: Path, tmp_path: Path) -> None:
    """Breaks if weights behind a transposition stay float32, or another channel's scale is taken."""
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / f"{DECODER}.onnx").symlink_to(default_graphs / f"{DECODER}.onnx")
    reduced = graphs_of(tmp_path / "graphs", "int8") / f"{DECODER}.onnx"
    sizes = [
        sum(t.ByteSize() for t in onnx.load(path).graph.initializer)
        for path in (default_graphs / reduced.name, reduced)
    ]
    assert sizes[1] < sizes[0] / 2, "convolutions and names stay"
    rng = np.random.default_rng(0)
    exact, eight = OnnxRuntimeGraph(default_graphs / reduced.name, 1), OnnxRuntimeGraph(reduced, 1)
    shapes = {"embedding": (1, 192, 32, 32), "fine_8": (1, 48, 64, 64), "fine_4": (1, 24, 128, 128)}
    inputs = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs |= {POINT_COORDS: np.full((1, 2, 2), 200, np.float32), POINT_LABELS: np.array([[1, -1]])}
    want, got = exact.run(inputs)[0], eight.run(inputs)[0]
    assert 0 < relative_error(got, want) < 0.2
