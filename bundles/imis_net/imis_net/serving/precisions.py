"""Graphs of float32 -> the same graphs in fewer bits. Whether they still answer alike: ``evaluation/agreement.py``."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from imis_net.adapters.graph_runtimes import TEXT_ENCODER

FLOAT32_OPS = ("LayerNormalization", "Softmax", "Resize", "Range", "CastLike")
"""Those whose range or steps float16 does not hold."""
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "MatMul", "Sin", "Cos", "LayerNormalization", "Softmax")
"""Whose results are never integers."""


def half_precision(folder: Path, out: Path) -> None:
    """Graphs of float32 -> the same with float16 arithmetic; inputs, outputs, norms and angles of positions stay."""
    for path in _to_reduce(folder, out):
        angles = _angles(onnx.load(path, load_external_data=False))
        half = convert_float_to_float16(  # by path: types are inferred from files of any size
            str(path), keep_io_types=True, op_block_list=list(FLOAT32_OPS), node_block_list=angles
        )
        _spare_round_trips(half)
        onnx.save(half, out / path.name)


def _to_reduce(folder: Path, out: Path) -> list[Path]:
    """Make ``out`` with the names' graph as it is, which runs once a name; the others."""
    out.mkdir()
    for path in folder.glob(f"{TEXT_ENCODER}*"):
        shutil.copyfile(path, out / path.name)
    return sorted(path for path in folder.glob("*.onnx") if path.stem != TEXT_ENCODER)


def _spare_round_trips(model: onnx.ModelProto) -> None:
    """Between two nodes that stay float32 the converter leaves a cast to float16 and back, which rounds."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            back = made_by.get(name)
            there = made_by.get(back.input[0]) if back is not None and _casts_to(back, onnx.TensorProto.FLOAT) else None
            if there is not None and _casts_to(there, onnx.TensorProto.FLOAT16):
                source = made_by.get(there.input[0])
                if source is not None and source.op_type in ARITHMETIC:
                    node.input[i] = there.input[0]


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


def _angles(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that a sine or cosine is taken from: a pixel is lost there in float16."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    names: set[str] = set()
    waiting = [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    while waiting:
        node = waiting.pop()
        if node.name not in names:
            names.add(node.name)
            waiting += [made_by[name] for name in node.input if name in made_by]
    return sorted(names)


def eight_bits(folder: Path, out: Path) -> None:
    """Graphs of float32 -> the same with matrix products of weights in 8 bits, scaled by channel and by input.

    Convolutions stay: their inputs' scales would have to be chosen beforehand.
    """
    onnxruntime.set_default_logger_severity(3)  # it warns of each constant that it leaves
    for path in _to_reduce(folder, out):
        reduced = out / path.name
        quant_pre_process(path, reduced, skip_symbolic_shape=True)  # weights behind a transposition become constants
        quantize_dynamic(reduced, reduced, ["MatMul"], per_channel=True, weight_type=QuantType.QInt8)


REDUCED = {"fp16": half_precision, "int8": eight_bits}
"""By the name of a precision that has graphs of its own."""
