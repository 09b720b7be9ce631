"""What changed between two masks of a slice, as run lengths in the smallest box that holds it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Patch:
    """A piece of a mask.

    Attributes:
        box: x0, y0, x1, y1 in pixels, all inclusive.
        counts: lengths of runs of 0 and 1 in turn, the first of 0, row after row of the box.
    """

    box: tuple[int, int, int, int]
    counts: tuple[int, ...]


def changed_patch(old: np.ndarray, new: np.ndarray) -> Patch | None:
    """bool [H, W] twice -> ``new`` within the box of what differs, or None if nothing does."""
    rows, columns = np.nonzero(old != new)
    if not len(rows):
        return None
    x0, y0, x1, y1 = (int(v) for v in (columns.min(), rows.min(), columns.max(), rows.max()))
    return Patch((x0, y0, x1, y1), encode_runs(new[y0 : y1 + 1, x0 : x1 + 1]))


def encode_runs(mask: np.ndarray) -> tuple[int, ...]:
    """bool [H, W] -> run lengths, the first of zeros."""
    flat = mask.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return tuple([0, *runs] if flat[0] else runs)


def decode_runs(counts: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """Run lengths -> bool [H, W].

    Raises:
        ValueError: they do not fill the box.
    """
    if sum(counts) != height * width:
        raise ValueError(f"run lengths: expected {height * width} pixels, got {sum(counts)}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def apply_patch(mask: np.ndarray, patch: Patch) -> None:
    """Bring bool [H, W] up to date, in place."""
    x0, y0, x1, y1 = patch.box
    mask[y0 : y1 + 1, x0 : x1 + 1] = decode_runs(patch.counts, y1 - y0 + 1, x1 - x0 + 1)
