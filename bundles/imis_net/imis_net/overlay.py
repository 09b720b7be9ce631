"""A picture for people: the image, the mask tinted and outlined, and the prompt that led to it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from imis_net.errors import ImageError
from imis_net.prompts import Prompt

Colour = tuple[int, int, int]

MASK_COLOUR: Colour = (255, 176, 0)
FOREGROUND_COLOUR: Colour = (64, 208, 96)
BACKGROUND_COLOUR: Colour = (224, 56, 48)
BOX_COLOUR: Colour = (72, 160, 255)
TINT = 0.3
"""How much of the mask's colour is laid over the image: what lies below stays visible."""
MIN_SIDE_PX = 512
"""Smaller images are enlarged by a whole factor, or markers would hide them."""


def draw_overlay(
    image: np.ndarray, mask: np.ndarray | None, prompt: Prompt | None = None, colour: Colour = MASK_COLOUR
) -> np.ndarray:
    """
    Args:
        image: uint8 [H, W, 3].
        mask: bool [H, W], or None for the prompt alone.
        prompt: its clicks become discs (green, or red for background), its box a frame; coordinates of ``image``.

    Returns:
        uint8 [f * H, f * W, 3] with f = 1 for images of ``MIN_SIDE_PX`` and more.

    Raises:
        ImageError: no such image, or a mask of another size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"expected an image uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if mask is not None and mask.shape != image.shape[:2]:
        raise ImageError(f"expected a mask of {list(image.shape[:2])}, got {list(mask.shape)}")
    factor = max(1, -(-MIN_SIDE_PX // max(image.shape[:2])))
    height, width = (side * factor for side in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    if mask is not None:
        enlarged = mask.astype(bool).repeat(factor, axis=0).repeat(factor, axis=1)
        picture = Image.fromarray(_tinted(np.asarray(picture), enlarged, colour))
    if prompt is not None:
        _draw_prompt(ImageDraw.Draw(picture), prompt, factor, max(4, max(height, width) // 100))
    return np.asarray(picture)


def _tinted(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    tinted = np.where(mask[..., None], (1 - TINT) * image + TINT * np.array(colour), image)
    tinted[_outline(mask)] = colour
    return np.rint(tinted).astype(np.uint8)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The mask's pixels with one of their 4 neighbours outside, the image's border counting as outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _draw_prompt(draw: ImageDraw.ImageDraw, prompt: Prompt, factor: int, radius_px: int) -> None:
    if prompt.box is not None:
        x0, y0, x1, y1 = ((float(v) + 0.5) * factor - 0.5 for v in prompt.box)
        draw.rectangle((x0, y0, x1, y1), outline=BOX_COLOUR, width=max(2, radius_px // 3))
    if prompt.point_coords is None or prompt.point_labels is None:
        return
    for (x, y), label in zip((prompt.point_coords + 0.5) * factor - 0.5, prompt.point_labels, strict=True):
        fill = FOREGROUND_COLOUR if label else BACKGROUND_COLOUR
        draw.ellipse(
            (x - radius_px, y - radius_px, x + radius_px, y + radius_px), fill=fill, outline=(255, 255, 255), width=2
        )
