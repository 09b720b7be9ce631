"""TensorRT for RTX compiles the graphs for GPUs that are not here, and refuses what TensorRT refuses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import gpu_engines
import onnx
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.utils.onnx import SamOnnxModel

from imis_net.adapters.graph_runtimes import DECODER
from imis_net.adapters.tensorrt import FACTS, check_facts
from imis_net.errors import ExportError
from imis_net.export import NECK, POINT_COORDS, POINT_LABELS, TEXT_ENCODER, TRUNK
from imis_net.serving.builds import graphs_of
from imis_net.serving.engines import MAX_POINTS, MAX_TARGETS, build_engines, compile_graph, profile_of

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_graph_compiles_ahead_of_time(default_graphs: Path, tmp_path: Path, precision: str) -> None:
    """Breaks if a graph holds what TensorRT does not take: sequences, shape tensors of floats, unsupported types."""
    graphs = tmp_path / "graphs"
    graphs.symlink_to(default_graphs)
    build_engines(graphs_of(graphs, precision), tmp_path / "engines", "tensorrt-rtx", ["80", "86", "89", "120"])
    made = {path.stem for path in (tmp_path / "engines").glob("*.plan")}
    assert made == {path.stem for path in default_graphs.glob("*.onnx")} - {TEXT_ENCODER}
    facts = json.loads((tmp_path / "engines" / FACTS).read_text())
    assert facts == {
        "backend": "tensorrt-rtx",
        "version": trt.__version__,
        "compute_capabilities": ["80", "86", "89", "120"],
    }
    check_facts(tmp_path / "engines", trt.__version__, "89")
    with pytest.raises(ExportError, match="this GPU is 75"):
        check_facts(tmp_path / "engines", trt.__version__, "75")
    with pytest.raises(ExportError, match=r"engines of version .*, installed is 9\.9"):
        check_facts(tmp_path / "engines", "9.9", "89")


def test_float16_spares_what_it_would_spoil(default_graphs: Path, tmp_path: Path) -> None:
    """Breaks if positions are computed, or inputs taken, in float16: a click would be a pixel off."""
    (tmp_path / "graphs").symlink_to(default_graphs)
    half = onnx.load(graphs_of(tmp_path / "graphs", "fp16") / f"{DECODER}.onnx")
    kinds = {i.name: i.type.tensor_type.elem_type for i in half.graph.input}
    assert kinds[POINT_COORDS] == onnx.TensorProto.FLOAT
    assert kinds[POINT_LABELS] == onnx.TensorProto.INT64
    made_by = {output: node for node in half.graph.node for output in node.output}
    sine = next(node for node in half.graph.node if node.op_type == "Sin")
    assert made_by[sine.input[0]].op_type != "Cast"
    weights = [t.data_type for t in half.graph.initializer]
    assert weights.count(onnx.TensorProto.FLOAT16) > weights.count(onnx.TensorProto.FLOAT)


def test_the_profile_holds_what_the_app_may_ask(default_graphs: Path) -> None:
    """Breaks if an engine refuses the clicks or targets that a request may have."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(default_graphs / f"{DECODER}.onnx"))
    profile = profile_of(network)
    assert profile[POINT_COORDS] == ([1, 0, 2], [1, 2, 2], [MAX_TARGETS, MAX_POINTS, 2])
    assert "embedding" not in profile, "an image's features are shared by all targets"


def test_unknown_gpus_and_graphs_are_refused_by_name(default_graphs: Path, tmp_path: Path) -> None:
    """Breaks if a wrong compute capability or a damaged graph ends in a stack trace of the compiler."""
    with pytest.raises(ExportError, match="got SM 7, expected one of"):
        compile_graph(trt, default_graphs / f"{NECK}.onnx", ["7"], tmp_path)
    (tmp_path / "torn.onnx").write_bytes((default_graphs / f"{TRUNK}.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"torn\.onnx: tensorrt_rtx .* does not take it"):
        compile_graph(trt, tmp_path / "torn.onnx", ["89"], tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which it would measure")
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_the_measurement_on_a_gpu_says_what_is_missing(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if the one command for owners of a GPU cannot be read, or ends in a traceback where there is none."""
    assert gpu_engines.main(["--backend", backend]) == 2
    assert f"gpu_engines: {backend} runs on an NVIDIA GPU" in capsys.readouterr().err


def test_metas_own_decoder_is_refused(tmp_path: Path) -> None:
    """Breaks if the check passes whatever it is given: Segment Anything's exported decoder is known to fail."""
    model = SamOnnxModel(sam_model_registry["vit_b"](), return_single_mask=True)
    inputs = {
        "image_embeddings": torch.randn(1, 256, 64, 64),
        "point_coords": torch.rand(1, 2, 2) * 1024,
        "point_labels": torch.ones(1, 2),
        "mask_input": torch.zeros(1, 1, 256, 256),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([480.0, 640.0]),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            tmp_path / "sam.onnx",
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            dynamic_axes={"point_coords": {1: "n"}, "point_labels": {1: "n"}},
        )
    with pytest.raises(ExportError, match=r"sam\.onnx: tensorrt_rtx"):
        compile_graph(trt, tmp_path / "sam.onnx", ["89"], tmp_path)
