"""Candidates by Segment Anything itself: the paper's choice, with Segment Anything's own automatic mask generator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

from imis_net.data_engine.candidates import Proposals, filter_masks
from imis_net.data_engine.provenance import InteractiveMask, Origin
from imis_net.data_engine.settings import CandidateSettings
from imis_net.errors import CheckpointError


class SamProposer:
    """Grid, filters and suppression are the generator's; only the background rule is added.

    Its masks have passed predicted IoU and non-maximum suppression (by box) already, so that how many went there is
    not known.
    """

    def __init__(self, sam: Any, settings: CandidateSettings) -> None:
        self.settings = settings
        self.generator = SamAutomaticMaskGenerator(
            sam,
            points_per_side=settings.grid_side,
            points_per_batch=settings.batch_size,
            pred_iou_thresh=settings.min_predicted_iou,
            box_nms_thresh=settings.max_nms_iou,
        )

    def __call__(self, image: np.ndarray) -> Proposals:
        found = self.generator.generate(image)
        masks = [
            InteractiveMask(np.asarray(m["segmentation"], bool), Origin.GENERATED, min(1.0, float(m["predicted_iou"])))
            for m in sorted(found, key=lambda m: -m["predicted_iou"])
        ]
        outcome = filter_masks(masks, self.settings)
        counts = Counter(m.steps[-1].rule.value for m in outcome.removed)
        return Proposals(outcome.kept, dict(sorted(counts.items())))


def load_sam(size: str, weights: Path, device: str = "cpu") -> Any:
    """Meta's checkpoint of ``vit_b``, ``vit_l`` or ``vit_h``.

    Raises:
        CheckpointError: no such size or file, or weights that do not fit.
    """
    if size not in sam_model_registry:
        raise CheckpointError(f"unknown SAM: got {size!r}, expected one of {', '.join(sorted(sam_model_registry))}")
    if not weights.is_file():
        raise CheckpointError(f"no SAM weights: there is no file {weights.name}")
    sam = sam_model_registry[size]()
    try:
        sam.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises anything on a file that is no checkpoint
        raise CheckpointError(f"{weights.name}: not a checkpoint of SAM {size} ({type(error).__name__})") from error
    return sam.to(device).eval()
