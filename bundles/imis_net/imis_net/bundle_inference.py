"""What ``configs/inference.yaml`` runs: one target in one slice, from a file to a mask in the image's own grid."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imis_net.errors import ImageError
from imis_net.files import write_atomically
from imis_net.images import read_volume, write_mask_nrrd
from imis_net.overlay import draw_overlay
from imis_net.prompts import Prompt
from imis_net.segmenter import load_segmenter
from imis_net.stepwise import StepwisePredictor


@dataclass(frozen=True)
class InferenceReport:
    """What was found; areas in pixels of the slice."""

    mask: str
    overlay: str
    iou_prediction: float
    area_px: int
    slice_index: int


@dataclass(frozen=True)
class BundleInference:
    """Attributes as in ``configs/inference.yaml``; coordinates in original pixels."""

    image: str
    output_dir: str
    slice_index: int | None = None
    clicks: Sequence[Sequence[float]] = ()
    box: Sequence[float] | None = None
    text: str | None = None
    model: str = "imis_net_compact"
    weights: str | None = None
    device: str = "cpu"

    def run(self) -> InferenceReport:
        """Write ``<image>_mask.nrrd`` and ``<image>_overlay.png`` and print the report as JSON.

        Raises:
            ImisError: an image, prompt or weights that cannot be used.
        """
        if self.image == "?":
            raise ImageError("image: expected a file, got none; give one with --image FILE")
        clicks = np.asarray(self.clicks, np.float32).reshape(-1, 3)
        prompt = Prompt(clicks[:, :2], clicks[:, 2], self.box, self.text)  # type: ignore[arg-type]
        volume = read_volume(self.image)
        index = volume.num_slices() // 2 if self.slice_index is None else self.slice_index
        pixels = volume.slice_rgb(index)
        segmenter = load_segmenter(self.model, self.weights, self.device)
        embedding = segmenter.encode_image(pixels)
        prediction = StepwisePredictor().predict(segmenter, embedding, self.image, prompt)
        out = Path(self.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        stem = Path(self.image).name.split(".")[0]
        mask, overlay = out / f"{stem}_mask.nrrd", out / f"{stem}_overlay.png"
        write_mask_nrrd(mask, volume.place_mask(prediction.mask, index), volume)
        picture = io.BytesIO()
        Image.fromarray(draw_overlay(pixels, prediction.mask, prompt)).save(picture, "PNG")
        write_atomically(overlay, picture.getvalue())
        report = InferenceReport(
            str(mask), str(overlay), round(prediction.iou_prediction, 4), int(prediction.mask.sum()), index
        )
        print(json.dumps(asdict(report)))
        return report
