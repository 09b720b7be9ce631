"""The segmenter that a deployment chose."""

from __future__ import annotations

from pathlib import Path

from imis_net.adapters.graph_runtimes import Build
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.adapters.triton import TritonSegmenter
from imis_net.segmenter import Segmenter, TorchSegmenter, load_segmenter
from lib.config import ON_CPU, Config


def build_segmenter(config: Config, weights: Path | None, graphs: Path) -> Segmenter:
    """``torch``, ``onnxruntime`` or ``openvino`` in this process, or ``triton``, with torch while that does not answer.

    Args:
        weights: a published version's; None is the deployment's own.
        graphs: folder where exported graphs are kept.

    Raises:
        CheckpointError: weights that are missing or do not fit.
        ExportError: their graphs differ from torch.
    """
    local = local_segmenter(config, weights, graphs)
    if config.segmenter == "triton":
        return TritonSegmenter(config.triton_url, fallback=local, deadline_s=config.triton_deadline_s)
    return local


def local_segmenter(config: Config, weights: Path | None, graphs: Path) -> TorchSegmenter:
    """What answers in this process; see ``build_segmenter``."""
    local = load_segmenter(config.model, weights or config.weights, config.device, **config.architecture)
    if config.segmenter in ON_CPU:
        return GraphSegmenter(local, graphs / local.weights_digest, Build(config.segmenter), config.threads)
    return local
