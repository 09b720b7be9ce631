"""Overlays of the masks that went most wrong: the truth beside the answer."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from imis_net.evaluation.harness import Score
from imis_net.overlay import FOREGROUND_COLOUR, draw_overlay
from imis_net.prompts import Prompt

NUM_WORST = 10


@dataclass
class WorstCases:
    """Keeps the pictures of the ``NUM_WORST`` lowest Dice values after the last round, and no others."""

    last_round: int
    _kept: list[tuple[float, int, str, np.ndarray]] = field(default_factory=list)
    _num_seen: int = 0

    def watch(self, score: Score, image: np.ndarray, truth: np.ndarray, mask: np.ndarray, prompt: Prompt) -> None:
        """``image`` uint8 [H, W, 3], ``truth`` and ``mask`` bool [H, W]."""
        if score.round != self.last_round:
            return
        self._num_seen += 1
        if len(self._kept) == NUM_WORST and -score.dice <= self._kept[0][0]:
            return
        pair = [draw_overlay(image, truth, colour=FOREGROUND_COLOUR), draw_overlay(image, mask, prompt)]
        # A heap's first is its smallest: negated, the best of those kept, which the next worse one replaces.
        item = (-score.dice, self._num_seen, score.modality, np.concatenate(pair, axis=1))
        if len(self._kept) < NUM_WORST:
            heapq.heappush(self._kept, item)
        else:
            heapq.heapreplace(self._kept, item)

    def write(self, folder: Path) -> None:
        """worst/01_dice_0.123.png and so on, the worst first; left the truth, right the answer with its prompt."""
        folder = folder / "worst"
        folder.mkdir()
        for i, (negative_dice, _, _, picture) in enumerate(sorted(self._kept, key=lambda k: (-k[0], k[1])), 1):
            Image.fromarray(picture).save(folder / f"{i:02d}_dice_{-negative_dice:.3f}.png")
