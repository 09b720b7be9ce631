"""Random views of a record: crops, flips and intensities that widen a few hundred images to many scanners.

Source: intensity ideas from SynthSeg (arXiv 2107.09559) and nnU-Net; everything is drawn from one numpy generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F


@dataclass(frozen=True)
class View:
    """Where a view lies in its record, and how it is flipped.

    Attributes:
        top, left, height, width: the crop in record pixels; may reach beyond the image, which is then padded with 0.
        flips: rows flipped, columns flipped, rows and columns swapped.
    """

    top: int
    left: int
    height: int
    width: int
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def keeps_sides(self) -> bool:
        """Whether left is still left, so that a name such as "left kidney" still holds."""
        return not any(self.flips)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """[H, W, ...] -> the crop, [height, width, ...] (or its transpose)."""
        height, width = array.shape[:2]
        before = max(0, -self.top), max(0, -self.left)
        after = max(0, self.top + self.height - height), max(0, self.left + self.width - width)
        top, left = self.top + before[0], self.left + before[1]
        if any(before) or any(after):
            pads = [(before[0], after[0]), (before[1], after[1])] + [(0, 0)] * (array.ndim - 2)
            array = np.pad(array, pads)
        crop = array[top : top + self.height, left : left + self.width]
        if self.flips[0]:
            crop = crop[::-1]
        if self.flips[1]:
            crop = crop[:, ::-1]
        return np.ascontiguousarray(crop.swapaxes(0, 1) if self.flips[2] else crop)


def whole_view(shape: tuple[int, ...]) -> View:
    return View(0, 0, shape[0], shape[1])


def random_view(
    shape: tuple[int, ...],
    focus: np.ndarray,
    min_scale: float,
    max_scale: float,
    flip_probability: float,
    rng: np.random.Generator,
    stretch_probability: float = 0.0,
) -> View:
    """A crop of ``scale`` times the longer side that contains a pixel of ``focus`` (bool [H, W], not empty).

    Square, but for a share of ``stretch_probability``: the model frame is square whatever the image, so that the
    reslices of a volume with thick slices reach it stretched.
    """
    scale = np.exp(rng.uniform(np.log(min_scale), np.log(max_scale)))
    side = max(32, round(max(shape[:2]) * scale))
    sides = [side, side]
    if rng.random() < stretch_probability:
        sides[rng.integers(2)] = max(32, round(side * rng.uniform(0.3, 1.0)))
    y, x = np.nonzero(focus)
    i = rng.integers(len(x))
    top, left = (_start(n, int(at[i]), length, rng) for n, at, length in zip(shape, (y, x), sides, strict=False))
    flips = (False, False, False)
    if rng.random() < flip_probability:
        flips = (bool(rng.random() < 0.5), bool(rng.random() < 0.5), bool(rng.random() < 0.5))
    return View(top, left, sides[0], sides[1], flips)


def _start(size: int, at: int, length: int, rng: np.random.Generator) -> int:
    """Where a view of ``length`` begins along an axis of ``size`` pixels so that it shows the pixel ``at``."""
    if length >= size:  # a wider view needs no choice: centre it, roughly
        return -int(rng.integers(0, length - size + 1))
    return at - int(rng.integers(length // 6, length - length // 6))


def random_warp(rows: int, columns: int, rng: np.random.Generator) -> torch.Tensor:
    """Where each pixel of a slightly turned, stretched and bent view comes from: float32 [1, rows, columns, 2], (x, y)
    in -1..1. Sides are kept."""
    turn, across, down = np.deg2rad(rng.uniform(-20, 20)), rng.uniform(0.85, 1.18), rng.uniform(0.85, 1.18)
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = torch.tensor([[[cos * across, -sin * down, 0.0], [sin * across, cos * down, 0.0]]], dtype=torch.float32)
    grid = F.affine_grid(matrix, [1, 1, rows, columns], align_corners=False)
    num_knots = int(rng.integers(4, 9))
    size = rng.uniform(0, 0.25) / num_knots  # knots move by a part of what lies between them: nothing folds
    knots = torch.from_numpy(rng.normal(0, size, (1, 2, num_knots, num_knots)).astype(np.float32))
    bend = F.interpolate(knots, size=(rows, columns), mode="bicubic", align_corners=True)
    return grid + bend.permute(0, 2, 3, 1)


def warp_image(image: np.ndarray, warp: torch.Tensor) -> np.ndarray:
    """[H, W, 3] on 0..255 -> float32 of the same size; what comes from outside is 0."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    return F.grid_sample(pixels, warp, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def warp_labels(label_map: np.ndarray, warp: torch.Tensor) -> np.ndarray:
    """uint16 [H, W] -> the same, the nearest pixel."""
    values = torch.from_numpy(label_map.astype(np.float32))[None, None]  # exact for 16 bits
    return F.grid_sample(values, warp, mode="nearest", align_corners=False)[0, 0].numpy().astype(np.uint16)


def resize_image(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[H, W, 3] on 0..255 -> float32 [rows, columns, 3], antialiased."""
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
    return pixels[0].permute(1, 2, 0).numpy()


def resize_labels(label_map: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """uint16 [H, W] -> uint16 [rows, columns], the nearest pixel."""
    height, width = label_map.shape
    y, x = (np.arange(rows) + 0.5) * (height / rows), (np.arange(columns) + 0.5) * (width / columns)
    return label_map[y.astype(int)][:, x.astype(int)]


def random_intensity(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[S, S, 3] on 0..255 -> uint8, as images are served, with another scanner's contrast."""
    x = image.astype(np.float32) / np.float32(255)
    if rng.random() < 0.5:  # a window: part of the range stretched to all of it
        low, high = rng.uniform(0, 0.35), rng.uniform(0.5, 1.0)
        x = np.clip((x - low) / (high - low), 0, 1)
    if rng.random() < 0.5:
        x = x ** np.exp(rng.uniform(-0.7, 0.7))
    if rng.random() < 0.15:
        x = 1 - x
    if rng.random() < 0.15:
        x = _stained(x, rng)
    if rng.random() < 0.25:
        x = x * _bias_field(x.shape[0], rng)
    if rng.random() < 0.2:
        x = ndimage.gaussian_filter(x, (s := rng.uniform(0.3, 1.5), s, 0))
    if rng.random() < 0.3:
        noise = rng.standard_normal(x.shape[:2], dtype=np.float32)
        x = x + np.float32(rng.uniform(0.005, 0.08)) * noise[..., None]
    if rng.random() < 0.5:
        x = x * rng.uniform(0.8, 1.2) + rng.uniform(-0.1, 0.1)
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _stained(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [S, S, 3] with colours that follow the brightness along a bent path, as stains and endoscopes give."""
    knots = np.linspace(0, 1, 5)
    ground = knots * rng.uniform(0.2, 1.2, (3, 1)) + rng.normal(0, 0.2, (3, 5))
    levels = np.clip(ground, 0, 1).astype(np.float32)
    return np.stack([np.interp(x[..., c], knots, levels[c]) for c in range(3)], axis=-1).astype(np.float32)


def synthetic_contrast(label_map: np.ndarray, background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a real label map with random grey values and texture: uint16 [S, S], float32 [S, S, 3] -> the latter."""
    values = rng.uniform(0, 255, int(label_map.max()) + 1).astype(np.float32)
    textures = rng.uniform(0, 25, len(values)).astype(np.float32)
    noise = ndimage.gaussian_filter(rng.standard_normal(label_map.shape, dtype=np.float32), rng.uniform(0, 2))
    noise /= noise.std() + 1e-6
    painted = values[label_map] + textures[label_map] * noise
    share = rng.uniform(0.3, 1.0)
    kept = background.mean(-1)
    painted = np.where(label_map > 0, share * painted + (1 - share) * kept, kept)
    painted = ndimage.gaussian_filter(painted, rng.uniform(0.3, 1.2))
    return np.repeat(np.clip(painted, 0, 255)[..., None], 3, axis=2).astype(np.float32)


def _bias_field(side: int, rng: np.random.Generator) -> np.ndarray:
    coarse = torch.from_numpy(rng.uniform(0.6, 1.3, (1, 1, 4, 4)).astype(np.float32))
    field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    return field[0, 0].numpy()[..., None]
