"""Original frame <-> model frame, for pixels and coordinates together.

The model frame is S x S; the image is stretched to it without keeping its aspect ratio, as IMIS-Bench does. Because
(0, 0) is a pixel's centre in both frames, the network adds half a pixel itself after coordinates are scaled.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imis_net.errors import ImageError


def to_model_frame(image: np.ndarray, side: int, mode: str = "nearest") -> Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, side, side] on the 0..255 scale.

    ``nearest`` is what IMIS-Net was trained with; ``bilinear`` (antialiased when shrinking) is for networks of ours.

    Raises:
        ImageError: not an 8-bit RGB image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ImageError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    if image.shape[:2] == (side, side):
        return pixels
    if mode == "nearest":
        rows, columns = (_nearest_index(n, side) for n in image.shape[:2])
        return pixels[:, :, rows][:, :, :, columns]
    return F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def _nearest_index(size: int, side: int) -> Tensor:
    """Pillow's NEAREST: the source pixel under each target pixel's centre."""
    return ((torch.arange(side, dtype=torch.float64) + 0.5) * (size / side)).floor().long().clamp(max=size - 1)


def points_to_model_frame(xy_px: Tensor, original_size: tuple[int, int], side: int) -> Tensor:
    """(x, y) in original pixels [..., 2] -> the same in the model frame."""
    height, width = original_size
    return xy_px * xy_px.new_tensor([side / width, side / height])


def box_to_model_frame(box_px: Tensor, original_size: tuple[int, int], side: int) -> Tensor:
    """x0, y0, x1, y1 in original pixels [..., 4] -> the same in the model frame."""
    return points_to_model_frame(box_px.unflatten(-1, (2, 2)), original_size, side).flatten(-2)


def logits_to_original(low_res_masks: Tensor, original_size: tuple[int, int], side: int) -> Tensor:
    """[B, 1, S/4, S/4] -> [B, 1, H, W], through the model frame as the reference does: two bilinear steps."""
    in_model = F.interpolate(low_res_masks, size=(side, side), mode="bilinear", align_corners=False)
    if original_size == (side, side):
        return in_model
    return F.interpolate(in_model, size=original_size, mode="bilinear", align_corners=False)
