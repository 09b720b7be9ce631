"""Drawn images with exact labels: cells with membranes, touching nuclei, tissues inside an organ.

A few hundred real images hold few kinds of edges; these hold any number, and targets that share one box, so that a
network learns what to answer when the prompt cannot say which one is meant.
Source: domain randomisation as in SynthSeg (arXiv 2107.09559) and AnyStar (arXiv 2307.07044).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from imis_net.training.dataset import Record

MIN_SIDE, MAX_SIDE = 28, 256
SOURCE = "scene"


def random_scene(rng: np.random.Generator) -> Record:
    """A square grey image of 28 to 256 pixels with at least one label map; no target has a name."""
    targets: tuple[tuple[np.ndarray, dict[int, str]], ...] = ()
    while not targets:  # now and then everything drawn lies outside
        side = int(np.exp(rng.uniform(np.log(MIN_SIDE), np.log(MAX_SIDE))))
        draw = SCENES[rng.integers(len(SCENES))]
        image, label_maps = draw(side, rng)
        targets = tuple((m.astype(np.uint16), {}) for m in label_maps if m.any())
    grey = np.clip(image * 255, 0, 255).astype(np.uint8)
    return Record(draw.__name__, SOURCE, SOURCE, SOURCE, np.repeat(grey[..., None], 3, axis=2), targets)


def cells(side: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cells that fill the image, divided by membranes, with things inside; targets: each, all, the membranes."""
    to_seed, labels = _partition(side, int(rng.integers(6, 140)), rng)
    membrane = to_seed < rng.uniform(0.8, 3.0) * max(1.0, side / 128)
    interior = np.where(membrane, 0, labels)
    level = rng.uniform(0.4, 0.9)
    image = level + rng.normal(0, rng.uniform(0, 0.12), labels.max() + 1)[labels]
    image = image + rng.uniform(0, 0.15) * _noise(side, rng.uniform(0.7, 3), rng)
    organelles = _noise(side, rng.uniform(1, 3), rng) > rng.uniform(1.3, 2.5)
    image = np.where(organelles, image * rng.uniform(0.4, 1.2), image)
    image = np.where(membrane, rng.uniform(0.0, 0.75) * level, image)
    if rng.random() < 0.2:
        image = 1 - image
    classes = np.where(membrane, 2, 1)
    return _finished(image, rng), [interior, classes, classes] if rng.random() < 0.5 else [interior]


def nuclei(side: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Round bodies, apart or touching, on a darker or brighter ground; targets: each one."""
    radius = side * np.exp(rng.uniform(np.log(0.03), np.log(0.18)))
    spots = _scattered(side, radius * rng.uniform(1.1, 2.6), rng)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    bend = 0.35 * radius
    rows += bend * _noise(side, radius, rng)
    columns += bend * _noise(side, radius, rng)
    distance, nearest = cKDTree(spots).query(np.stack([rows.ravel(), columns.ravel()], 1))
    own = radius * rng.uniform(0.6, 1.1, len(spots))
    labels = np.where(distance < own[nearest], nearest + 1, 0).reshape(side, side)
    ground = rng.uniform(0, 0.4)
    levels = ground + rng.uniform(0.12, 0.6) * rng.uniform(0.5, 1.0, len(spots) + 1)
    image = np.where(labels > 0, levels[labels], ground)
    image = image * (1 + rng.uniform(0, 0.2) * _noise(side, rng.uniform(0.8, 2.5), rng))
    if rng.random() < 0.5:  # brighter in the middle, as a ball of fluorescence is
        depth = (1 - (distance / own[nearest]).clip(0, 1) ** 2).reshape(side, side)
        image = ground + (image - ground) * np.where(labels > 0, 0.4 + 0.6 * depth, 1)
    if rng.random() < 0.3:
        image = 1 - image
    return _finished(image, rng), [labels]


def tissues(side: int, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """A body with folded tissues inside and a rim; targets: each tissue, the body, and each small part of one."""
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    shape = np.hypot(rows / rng.uniform(0.5, 1), columns / rng.uniform(0.5, 1)) + 0.05 * _noise(side, side / 8, rng)
    body = shape < rng.uniform(0.25, 0.5)
    if not body.any():
        return nuclei(side, rng)
    num_tissues = int(rng.integers(2, 5))
    fold = side * np.exp(rng.uniform(np.log(0.02), np.log(0.12)))
    inward = ndimage.distance_transform_edt(body)
    field = _noise(side, fold, rng) + rng.uniform(0, 3) * inward / inward.max()
    bounds = np.quantile(field[body], np.sort(rng.uniform(0.1, 0.9, num_tissues - 1)))
    classes = np.where(body, np.digitize(field, bounds) + 1, 0)
    levels = np.concatenate([[rng.uniform(0, 0.3)], rng.uniform(0.15, 1, num_tissues)])
    image = levels[classes] + rng.uniform(0, 0.08) * _noise(side, rng.uniform(0.5, 2), rng)
    if rng.random() < 0.5:  # a bright shell around it, as a skull is
        image = np.where((shape > 0.5) & (shape < rng.uniform(0.52, 0.6)), rng.uniform(0.4, 1), image)
    parts, _ = ndimage.label(classes == rng.integers(1, num_tissues + 1))
    return _finished(image, rng), [classes, classes, body, parts]


SCENES: tuple[Callable[[int, np.random.Generator], tuple[np.ndarray, list[np.ndarray]]], ...] = (
    cells,
    nuclei,
    nuclei,
    tissues,
)


def _partition(side: int, num_seeds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bent Voronoi cells: distance to the border between two of them in pixels, and labels from 1; both [S, S]."""
    seeds = rng.uniform(-0.1, 1.1, (num_seeds, 2)) * side
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    size = side / np.sqrt(num_seeds)
    for scale in (size, size / 3):
        rows += 0.25 * scale * _noise(side, scale / 2, rng)
        columns += 0.25 * scale * _noise(side, scale / 2, rng)
    distance, nearest = cKDTree(seeds).query(np.stack([rows.ravel(), columns.ravel()], 1), k=2)
    return (distance[:, 1] - distance[:, 0]).reshape(side, side) / 2, nearest[:, 0].reshape(side, side) + 1


def _scattered(side: int, gap: float, rng: np.random.Generator) -> np.ndarray:
    """Points [N, 2] (row, column) no nearer to one another than ``gap`` pixels."""
    chosen = [rng.uniform(0, side, 2)]
    for point in rng.uniform(0, side, (200, 2)):
        if np.min(np.hypot(*(np.array(chosen) - point).T)) > gap:
            chosen.append(point)
    return np.array(chosen)


def _noise(side: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise float32 [S, S] of mean 0 and deviation 1."""
    step = max(1, int(sigma / 2))  # a coarse grid is as smooth and cheaper
    coarse = rng.normal(0, 1, (side // step + 3, side // step + 3)).astype(np.float32)
    smooth = ndimage.gaussian_filter(coarse, sigma / step)
    if step > 1:
        smooth = ndimage.zoom(smooth, step, order=1)
    smooth = smooth[:side, :side]
    return (smooth - smooth.mean()) / (smooth.std() + 1e-6)


def _finished(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scanner: blur, along the axis of a microscope much more than across it, and noise."""
    blur = np.full(2, rng.uniform(0, 1.6))
    if rng.random() < 0.3:
        blur[rng.integers(2)] *= rng.uniform(1, 4)
    image = ndimage.gaussian_filter(image, blur)
    return image + rng.normal(0, rng.uniform(0, 0.06), image.shape)
