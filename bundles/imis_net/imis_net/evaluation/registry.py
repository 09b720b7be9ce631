"""Every segmenter that can be scored, by name: ours, the rivals behind the same contract, and the floors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from imis_net.adapters.medsam import load_medsam
from imis_net.adapters.sam import load_sam
from imis_net.adapters.sam2 import load_sam2
from imis_net.adapters.sam_med2d import load_sam_med2d
from imis_net.errors import CheckpointError
from imis_net.evaluation.floors import EllipseFloor, RectangleFloor
from imis_net.segmenter import DEFAULT_MODEL, Segmenter, load_segmenter

RIVALS: dict[str, Callable[[Path], Segmenter]] = {
    "sam": load_sam,
    "sam2": load_sam2,
    "medsam": load_medsam,
    "sam_med2d": load_sam_med2d,
}
OURS = {"compact": DEFAULT_MODEL, "imis_net": "imis_net_vit_b"}
FLOORS: dict[str, Callable[[], Segmenter]] = {"ellipse": EllipseFloor, "rectangle": RectangleFloor}
SEGMENTERS = (*OURS, *RIVALS, *FLOORS)


def make_segmenter(name: str, weights: Path | None = None, image_size: int | None = None) -> Segmenter:
    """
    Raises:
        CheckpointError: a rival without its weights, a file that is missing or of another model, or a size given to a
            segmenter that has only its own.
    """
    if image_size is not None and name not in OURS:
        raise CheckpointError(f"--image-size: only {', '.join(OURS)} can be resized, got {name}")
    if name in FLOORS:
        return FLOORS[name]()
    if name in OURS:
        size: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
        return load_segmenter(OURS[name], weights, **size)
    if weights is None:
        raise CheckpointError(f"no weights for {name}: give its published file with --weights")
    return RIVALS[name](weights)
