"""MedSAM behind the Segmenter contract: SAM ViT-B's network with its own pixels, and boxes only.

Source: Ma et al., Nature Communications 2024, and its inference script. The image is stretched to 1024 x 1024 with
bicubic interpolation and scaled to [0, 1]; neither SAM's mean and deviation nor its padding is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from segment_anything import sam_model_registry
from skimage.transform import resize
from torch import Tensor
from torch.nn import functional as F

from imis_net.adapters.sam import SamSegmenter, check_rgb, load_network
from imis_net.errors import PromptError
from imis_net.prompts import ImageEmbedding, Prompt


class MedSamSegmenter(SamSegmenter):
    """One box, one mask."""

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        check_rgb(image)
        features = self.network.image_encoder(self._to_frame(image))
        return ImageEmbedding((features,), (image.shape[0], image.shape[1]), self.encoder_digest)

    def _to_frame(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> [1, 3, S, S] in 0..1."""
        side = (self.frame.side, self.frame.side)
        stretched = resize(image, side, order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
        low, high = int(stretched.min()), int(stretched.max())
        scaled = (stretched - float(low)) / max(high - low, 1e-8)
        return torch.tensor(scaled).permute(2, 0, 1)[None].float()

    def _scaled(self, xy_px: np.ndarray, size: tuple[int, int]) -> Tensor:
        return self.frame.points(torch.tensor(xy_px.reshape(1, -1, 2)), size)

    def _to_original(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def _check_kind(self, prompt: Prompt) -> None:
        if prompt.box is None or prompt.point_coords is not None or prompt.text is not None:
            raise PromptError("MedSAM takes a box and nothing else: got another prompt or more than the box")


def load_medsam(weights: Path) -> MedSamSegmenter:
    """The published ``medsam_vit_b.pth``.

    Raises:
        CheckpointError: no such file, or another model's.
    """
    return MedSamSegmenter(load_network(weights, lambda size: sam_model_registry[size]()))
