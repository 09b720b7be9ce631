"""The segmenter that a deployment chose."""

from __future__ import annotations

from pathlib import Path

from imis_net.adapters.triton import TritonSegmenter
from imis_net.segmenter import Segmenter, load_segmenter
from lib.config import Config


def build_segmenter(config: Config, weights: Path | None = None) -> Segmenter:
    """``torch`` in this process, or ``triton`` with torch to fall back to while Triton does not answer.

    ``weights`` are a published version's; by default the deployment's own.

    Raises:
        CheckpointError: weights that are missing or do not fit.
    """
    local = load_segmenter(config.model, weights or config.weights, config.device, **config.architecture)
    if config.segmenter == "triton":
        return TritonSegmenter(config.triton_url, fallback=local, deadline_s=config.triton_deadline_s)
    return local
