"""Original frame <-> model frame, for pixels and coordinates together.

The model frame is S x S; the image is stretched to it without keeping its aspect ratio, as IMIS-Bench does. Because
(0, 0) is a pixel's centre in both frames, the network adds half a pixel itself after coordinates are scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imis_net.errors import ImageError


@dataclass(frozen=True)
class Frame:
    """A network's model frame, and how an image gets there, in training and serving alike.

    Attributes:
        side: S.
        resize: ``nearest``, which IMIS-Net was trained with, or ``bilinear``, antialiased when shrinking.
        max_enlargement: what an axis is stretched by at most. An image of fewer than S pixels over that leaves the
            right or the lower part of the frame black: stretched further, a few pixels become a blur that looks like
            nothing the network has seen.
    """

    side: int
    resize: str = "nearest"
    max_enlargement: float = math.inf

    def canvas(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width, in original pixels, of what is stretched to the frame: the image and what stays black."""
        least = math.ceil(self.side / self.max_enlargement)
        return max(original_size[0], least), max(original_size[1], least)

    def image(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> float32 [1, 3, S, S] on the 0..255 scale.

        Raises:
            ImageError: not an 8-bit RGB image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        pixels = self._on_canvas(torch.tensor(image).permute(2, 0, 1)[None].float())
        size = (self.side, self.side)
        if pixels.shape[-2:] == size:
            return pixels
        if self.resize == "nearest":
            rows, columns = (_nearest_index(n, self.side) for n in pixels.shape[-2:])
            return pixels[:, :, rows][:, :, :, columns]
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """bool [H, W] -> bool [S, S]."""
        size = (self.side, self.side)
        if mask.shape == size:
            return mask
        soft = self._on_canvas(torch.from_numpy(np.ascontiguousarray(mask))[None, None].float())
        return (F.interpolate(soft, size=size, mode="bilinear", align_corners=False)[0, 0] > 0.5).numpy()

    def low_res(self, logits: np.ndarray, beside: float) -> np.ndarray:
        """[H, W] -> float32 [S/4, S/4], a previous mask as a prompt takes it; ``beside`` stands beside the image."""
        pixels = self._on_canvas(torch.from_numpy(logits.astype(np.float32))[None, None], beside)
        size = (self.side // 4, self.side // 4)
        return F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0, 0].numpy()

    def points(self, xy_px: Tensor, original_size: tuple[int, int]) -> Tensor:
        """(x, y) in original pixels [..., 2] -> the same in the model frame."""
        height, width = self.canvas(original_size)
        return xy_px * xy_px.new_tensor([self.side / width, self.side / height])

    def boxes(self, box_px: Tensor, original_size: tuple[int, int]) -> Tensor:
        """x0, y0, x1, y1 in original pixels [..., 4] -> the same in the model frame."""
        return self.points(box_px.unflatten(-1, (2, 2)), original_size).flatten(-2)

    def to_original(self, low_res_masks: Tensor, original_size: tuple[int, int]) -> Tensor:
        """Logits [B, 1, S/4, S/4] -> [B, 1, H, W], through the model frame as the reference does: bilinear twice."""
        logits = F.interpolate(low_res_masks, size=(self.side, self.side), mode="bilinear", align_corners=False)
        canvas = self.canvas(original_size)
        if canvas != (self.side, self.side):
            logits = F.interpolate(logits, size=canvas, mode="bilinear", align_corners=False)
        return logits[..., : original_size[0], : original_size[1]]

    def _on_canvas(self, pixels: Tensor, beside: float = 0.0) -> Tensor:
        """[1, C, H, W] with the black beside it."""
        height, width = pixels.shape[-2:]
        rows, columns = self.canvas((height, width))
        return F.pad(pixels, (0, columns - width, 0, rows - height), value=beside)


def _nearest_index(size: int, side: int) -> Tensor:
    """Pillow's NEAREST: the source pixel under each target pixel's centre."""
    return ((torch.arange(side, dtype=torch.float64) + 0.5) * (size / side)).floor().long().clamp(max=size - 1)
