"""The network as ONNX graphs, each compared with torch before it is kept. Tensor names: ``serving/tensors.py``.

    trunk.onnx                  images -> the frozen part's maps
    neck.onnx                   those maps -> features
    text_encoder.onnx           tokens -> text
    decoder[_text][_mask].onnx  features, points and what the name says -> masks of B targets of one image

What a prompt lacks is no input of its decoder: no flag, no zeros, so that the mask is exactly torch's, and without a
previous mask all targets share one image. Clicks and box corners are one list of labelled points.

The trunk is frozen and its normalisation is folded into its convolutions. Elsewhere nothing is folded: every weight is
an initializer under its own name, so that what was retrained is filled into the graphs of the weights before in a
second, where tracing takes a minute.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor, nn

from imis_net.adapters.graph_runtimes import NECK, TEXT_ENCODER, TRUNK, OnnxRuntimeGraph, decoder_name
from imis_net.errors import ExportError
from imis_net.networks.image_encoder import ImageEncoderViT
from imis_net.networks.imis_net import IMISNet
from imis_net.serving.tensors import (
    FEATURES,
    IMAGES,
    LOW_RES_MASKS,
    POINT_COORDS,
    POINT_LABELS,
    PREDICTIONS,
    TEXT,
    TOKENS,
)

VIT_MAPS = ("stride_16",)  # FP32 [B, C, S/16, S/16]
COMPACT_MAPS = ("stride_4", "stride_8", "stride_16", "stride_32")  # FP32 [B, C, S/stride, S/stride]
BATCH, NUM_POINTS = "batch", "num_points"

OPSET = 20
"""LayerNormalization and Gelu are single nodes, and TensorRT reads it."""
TOLERANCE = 1e-4
MAX_FILE_BYTES = 2**31 - 2**26
"""Of weights in one ONNX file, which Protobuf bounds; more of them go to a file of their own beside it."""
LARGE_FRAME_PX = 1024
"""A frame of so many keeps gigabytes of attention for each image, so that one is compared at a time."""
PARITY, STRUCTURE = "parity.csv", "structure.txt"
Shapes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Graph:
    """One file to be: a module, its inputs of batch 2 by name, and which of their axes stay open.

    Attributes:
        shared: inputs of one image for all targets.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    shared: frozenset[str] = frozenset()

    def axes(self) -> list[dict[int, torch.export.Dim]]:
        batch, points = torch.export.Dim(BATCH, min=1, max=256), torch.export.Dim(NUM_POINTS, min=1, max=1024)
        closed: dict[int, torch.export.Dim] = {}
        by_name = {POINT_COORDS: {0: batch, 1: points}, POINT_LABELS: {0: batch, 1: points}}
        return [closed if n in self.shared else by_name.get(n, {0: batch}) for n in self.inputs]

    def at(self, num_targets: int, num_points: int) -> dict[str, Tensor]:
        """The inputs again at another size."""
        rows = (torch.arange(num_targets) + 1) % 2  # not in the order of tracing, so that names are told apart
        sized = {n: v if n in self.shared else v[rows] for n, v in self.inputs.items()}
        for name in (POINT_COORDS, POINT_LABELS) if POINT_COORDS in sized else ():
            sized[name] = sized[name][:, :1].expand(num_targets, num_points, *sized[name].shape[2:])
        generator = torch.Generator().manual_seed(num_targets)
        return {n: _varied(n, v, generator) for n, v in sized.items()}


@dataclass(frozen=True)
class Row:
    """One line of the parity table: the largest difference relative to the output's own scale."""

    graph: str
    output: str
    num_targets: int
    num_points: int
    error: float


def graphs(network: IMISNet) -> Iterator[Graph]:
    """Every graph of a network on the CPU, in evaluation mode."""
    side = network.image_size
    encoder = network.image_encoder
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(False), torch.no_grad():
        ready = encoder.for_inference(side)
        maps = [torch.cat(both) for both in zip(*map(encoder.trunk_features, images.split(1)), strict=True)]
        features = encoder.from_trunk(maps)
    map_names = VIT_MAPS if isinstance(encoder, ImageEncoderViT) else COMPACT_MAPS
    names = FEATURES[: len(features)]
    yield Graph(TRUNK, _Function(ready, ready.trunk_features), {IMAGES: images}, map_names)
    yield Graph(
        NECK,
        _Function(encoder, lambda *given: encoder.from_trunk(given)),
        dict(zip(map_names, maps, strict=True)),
        names,
    )
    if network.known_texts != ():
        tokens = network.text_encoder.tokenize((network.known_texts or ("liver", "spleen"))[:2])
        yield Graph(TEXT_ENCODER, _Function(network, network.embed_text), {TOKENS: tokens}, (TEXT,))
    for has_text in (False, True) if network.known_texts != () else (False,):
        for has_mask in (False, True):
            yield _decoder(network, [f[:1] for f in features], has_text, has_mask)


def _decoder(network: IMISNet, features: Sequence[Tensor], has_text: bool, has_mask: bool) -> Graph:
    side = network.image_size
    names = FEATURES[: len(features)]
    inputs = dict(zip(names, features, strict=True))
    inputs[POINT_COORDS] = torch.full((2, 3, 2), side / 2)
    inputs[POINT_LABELS] = torch.ones(2, 3, dtype=torch.long)
    if has_text:
        inputs[TEXT] = torch.zeros(2, network.embed_dim)
    if has_mask:
        inputs[LOW_RES_MASKS] = torch.zeros(2, 1, side // 4, side // 4)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(inputs, values, strict=True))
        answer = network.predict_from_points(
            tuple(given[n] for n in names),
            given[POINT_COORDS],
            given[POINT_LABELS],
            given.get(TEXT),
            given.get(LOW_RES_MASKS),
        )
        return answer.low_res_masks, answer.iou_predictions, answer.semantic_embeddings

    name = decoder_name(has_text, has_mask)
    return Graph(name, _Function(network, run), inputs, PREDICTIONS, frozenset(names))


def export(network: IMISNet, folder: Path, tolerance: float = TOLERANCE) -> list[Row]:
    """Write every graph and its parity table; the folder appears only when all agree with torch.

    Graphs of the same structure in a folder beside it are filled with this network's weights instead of traced.

    Raises:
        ExportError: the folder exists, or a graph differs from torch by more than ``tolerance``.
    """
    if folder.exists():
        raise ExportError(f"{folder.name}: exists already; choose another folder")
    structure = structure_of(network)
    template = _of_structure(folder.parent, structure)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}")
    draft.mkdir(parents=True)
    try:
        rows = []
        for graph in graphs(network.eval()):
            path = fill_graph(graph, template, draft) if template else write_graph(graph, draft)
            rows += compare(graph, path)
            check(rows, tolerance)
        _write_table(rows, draft / PARITY)
        (draft / STRUCTURE).write_text(structure + "\n")
        _appear(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return rows


def structure_of(network: IMISNet) -> str:
    """Digest of what the graphs are made from but the values of weights outside the trunk."""
    digest = hashlib.sha256(f"{network.name}|{network.image_size}|{OPSET}|{torch.__version__}".encode())
    for source in (Path(__file__), *sorted(Path(__file__).with_name("networks").glob("*.py"))):
        digest.update(source.read_bytes())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
    for value in network.image_encoder.trunk.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_structure(parent: Path, structure: str) -> Path | None:
    """A folder of whole graphs of that structure."""
    found = (file.parent for file in sorted(parent.glob(f"[!.]*/{STRUCTURE}")))
    return next((folder for folder in found if (folder / STRUCTURE).read_text().strip() == structure), None)


def _appear(draft: Path, folder: Path) -> None:
    try:
        os.rename(draft, folder)
    except OSError:  # another process has made the same meanwhile
        if not folder.is_dir():
            raise


def write_graph(graph: Graph, folder: Path) -> Path:
    """Traced; with its weights beside it where they are too large for one file."""
    path = folder / f"{graph.name}.onnx"
    weight_bytes = sum(value.nbytes for value in graph.module.state_dict().values())
    with torch.no_grad():
        torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=(tuple(graph.axes()),),
            external_data=weight_bytes > MAX_FILE_BYTES,
            optimize=graph.name == TRUNK,
            verbose=False,
        )
    onnx.checker.check_model(path)
    return path


def fill_graph(graph: Graph, template: Path, folder: Path) -> Path:
    """The graph of other weights and the same structure with this network's weights."""
    path = folder / f"{graph.name}.onnx"
    if graph.name == TRUNK:  # the same, since its values are part of the structure
        for part in template.glob(f"{path.name}*"):
            shutil.copyfile(part, folder / part.name)
        return path
    model = onnx.load(template / path.name)
    weights = graph.module.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            value = weights[tensor.name].detach().cpu().contiguous().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)
    return path


def compare(graph: Graph, path: Path) -> list[Row]:
    """Run a file by ONNX Runtime in float32 beside torch at sizes it was not traced with."""
    session = OnnxRuntimeGraph(path)
    sizes = [(1, 1), (1, 0), (3, 7)] if POINT_COORDS in graph.inputs else [(1, 0), (3, 0)]
    if IMAGES in graph.inputs and graph.inputs[IMAGES].shape[-1] >= LARGE_FRAME_PX:
        sizes = [(1, 0)]
    rows = []
    for num_targets, num_points in sizes:
        inputs = graph.at(num_targets, num_points)
        with torch.no_grad():
            expected = graph.module(*inputs.values())
        got = session.run({n: v.numpy() for n, v in inputs.items()})
        for name, e, g in zip(graph.outputs, _as_tuple(expected), got, strict=True):
            rows.append(Row(graph.name, name, num_targets, num_points, relative_error(g, e.numpy())))
    return rows


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference by the output's largest value, or by 1 where that is smaller; infinite if NaN or misshapen."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(got - expected).max() / max(1.0, np.abs(expected).max()))


def check(rows: Sequence[Row], tolerance: float) -> None:
    """Raises:
    ExportError: with the worst row, if that is beyond ``tolerance``.
    """
    worst = max(rows, key=lambda row: row.error)
    if worst.error > tolerance:
        raise ExportError(
            f"{worst.graph}: {worst.output} differs from torch by {worst.error:.2g}, at most {tolerance:.2g} allowed "
            f"({worst.num_targets} targets, {worst.num_points} points)"
        )


def _write_table(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["graph", "output", "num_targets", "num_points", "error", "tolerance"])
        table.writerows([r.graph, r.output, r.num_targets, r.num_points, f"{r.error:.3g}", TOLERANCE] for r in rows)


def _varied(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Other contents for the comparison; what only has few legal values keeps them."""
    if name == POINT_LABELS:
        return torch.randint(-1, 4, value.shape, generator=generator)
    if name == POINT_COORDS:
        return torch.rand(value.shape, generator=generator) * 2 * value.amax() if value.numel() else value
    if not value.is_floating_point():
        return value.contiguous()
    return value + 0.5 * torch.randn(value.shape, generator=generator)


def _as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


class _Function(nn.Module):
    """A method of a network as a module of its own, which the exporter asks for."""

    def __init__(self, network: nn.Module, run: object) -> None:
        super().__init__()
        self.network = network
        self.run = run
        self.eval()

    def forward(self, *inputs: Tensor) -> object:
        return self.run(*inputs)  # type: ignore[operator]
