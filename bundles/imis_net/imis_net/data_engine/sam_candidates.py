"""Candidates by Segment Anything itself: the paper's choice, with Segment Anything's own automatic mask generator."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam

from imis_net.adapters.sam import SIZES, load_network
from imis_net.data_engine.candidates import Proposals, filter_masks
from imis_net.data_engine.provenance import InteractiveMask, Origin
from imis_net.data_engine.settings import CandidateSettings
from imis_net.errors import CheckpointError


class SamProposer:
    """Grid, filters and suppression are the generator's; only the background rule is added.

    Its masks have passed predicted IoU and non-maximum suppression (by box) already, so that how many went there is
    not known.
    """

    def __init__(self, sam: Sam, settings: CandidateSettings) -> None:
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


def load_sam(name: str, weights: Path | None, device: str = "cpu") -> Sam:
    """Meta's checkpoint of ``sam_vit_b``, ``sam_vit_l`` or ``sam_vit_h``.

    Raises:
        CheckpointError: no such size or file, or weights that do not fit.
    """
    names = [f"sam_{size}" for size in SIZES.values()]
    if name not in names:
        raise CheckpointError(f"unknown SAM: got {name!r}, expected one of {', '.join(names)}")
    if weights is None:
        raise CheckpointError(f"{name}: expected --weights FILE, Meta's checkpoint of that size")

    def build(size: str) -> Sam:
        if f"sam_{size}" != name:
            raise CheckpointError(f"{weights.name}: expected {name}, got sam_{size}")
        return sam_model_registry[size]()

    return load_network(weights, build).to(device).eval()
