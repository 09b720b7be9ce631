"""From a segmenter to graphs or engines that answer as it does, or to a refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from imis_net import export
from imis_net.adapters.graph_runtimes import PRECISIONS, Build
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.errors import ExportError
from imis_net.evaluation.agreement import Agreement, compare
from imis_net.images import read_volume
from imis_net.segmenter import TorchSegmenter
from imis_net.serving.engines import build_engines, engines_name
from imis_net.serving.precisions import REDUCED

Say = Callable[[str], object]
MAX_SLICES = 8
"""Of each volume."""


def build_and_compare(
    local: TorchSegmenter,
    wanted: Build,
    kept: Path,
    images: Sequence[np.ndarray],
    num_prompts: int,
    compute_capabilities: Sequence[str] = (),
    say: Say = print,
) -> tuple[Build, Path]:
    """The wanted build, or the next more exact one of its backend that agrees with ``local``; and its folder.

    Args:
        kept: folder of graphs and engines by weights, where what is there is not made again.
        images: uint8 [H, W, 3], real ones.

    Raises:
        ExportError: the backend cannot be used here, or no precision agrees.
    """
    precisions = PRECISIONS[wanted.backend]
    for precision in reversed(precisions[: precisions.index(wanted.precision) + 1]):
        build = Build(wanted.backend, precision)
        folder, can_run = make(local, build, kept, compute_capabilities, say)
        agreement = _compared(local, build, folder, can_run, kept, images, num_prompts)
        say(f"{build}: {agreement}: {'ok' if agreement.is_close else 'REFUSED'}")
        if agreement.is_close:
            return build, folder
    raise ExportError(f"{wanted.backend}: no precision answers as float32 torch does")


def sample_slices(folder: Path) -> list[np.ndarray]:
    """Slices, uint8 [H, W, 3], of the NIfTI volumes of a folder.

    Raises:
        ExportError: there is none.
        ImageError: one cannot be read.
    """
    volumes = [read_volume(path) for path in sorted(folder.glob("*.nii.gz"))]
    if not volumes:
        raise ExportError(f"{folder}: expected images to compare on, *.nii.gz")
    return [v.slice_rgb(i) for v in volumes for i in range(0, v.num_slices(), -(-v.num_slices() // MAX_SLICES))]


def make(
    local: TorchSegmenter, build: Build, kept: Path, compute_capabilities: Sequence[str] = (), say: Say = print
) -> tuple[Path, bool]:
    """The build's folder, and whether it can be run on this machine."""
    kept.mkdir(parents=True, exist_ok=True)
    graphs = kept / local.weights_digest
    if not graphs.is_dir():
        say("exporting graphs, once for these weights")
        export.export(local.network, graphs)
    source = graphs_of(graphs, build.precision)
    if not build.backend.startswith("tensorrt"):
        return source, True
    folder = kept / engines_name(build.backend, build.precision, local.weights_digest, compute_capabilities)
    if not folder.is_dir():
        build_engines(source, folder, build.backend, compute_capabilities)
    say(f"engines: {folder.name}")
    return folder, torch.cuda.is_available()


def graphs_of(graphs: Path, precision: str) -> Path:
    """The graphs of a precision: those of float32, or made from them once."""
    if precision not in REDUCED:
        return graphs
    folder = graphs.with_name(f"{graphs.name}-{precision}")
    if not folder.is_dir():
        draft = graphs.with_name(f".{folder.name}")
        shutil.rmtree(draft, ignore_errors=True)
        REDUCED[precision](graphs, draft)
        draft.rename(folder)
    return folder


def _compared(
    local: TorchSegmenter,
    build: Build,
    folder: Path,
    can_run: bool,
    kept: Path,
    images: Sequence[np.ndarray],
    num_prompts: int,
) -> Agreement:
    """Engines that this machine cannot run are judged by the graphs they were compiled from."""
    if not can_run:
        build, folder = Build("onnxruntime"), graphs_of(kept / local.weights_digest, build.precision)
    return compare(local, GraphSegmenter(local, folder, build), images, num_prompts)
