"""Segmenters that ignore the image: what a score must beat before it means anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from imis_net.errors import PromptError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.transforms import Frame


class EllipseFloor:
    """Fills the box with an ellipse."""

    frame = Frame(512)
    encoder_digest = weights_digest = "ellipse"
    known_texts: tuple[str, ...] = ()

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        return ImageEmbedding((torch.empty(1, 0),), (image.shape[0], image.shape[1]), self.encoder_digest)

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        if prompt.box is None:
            raise PromptError("the ellipse floor needs a box, got none")
        mask = self._fill(prompt.box, embedding.original_size)
        side = self.frame.side // 4
        return Prediction(mask, 1.0, np.zeros((side, side), np.float32))

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [self.predict(embedding, p) for p in prompts]

    def _fill(self, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        x0, y0, x1, y1 = box
        y, x = np.mgrid[: size[0], : size[1]]
        rx, ry = (x1 - x0) / 2 + 0.5, (y1 - y0) / 2 + 0.5
        return ((x - (x0 + x1) / 2) / rx) ** 2 + ((y - (y0 + y1) / 2) / ry) ** 2 <= 1


class RectangleFloor(EllipseFloor):
    """Fills the box."""

    encoder_digest = weights_digest = "rectangle"

    def _fill(self, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        x0, y0, x1, y1 = box
        y, x = np.mgrid[: size[0], : size[1]]
        return (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
