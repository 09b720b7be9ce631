"""One training step's interaction: each image encoded once, then a first prompt and K corrective rounds.

Source: IMIS-Net (arXiv 2411.12814), section 4.2, simulated continuous interaction. IMIS-Bench's trainer detaches the
embedding and replaces the click embeddings' parameters, so that neck and clicks never learn; here both do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imis_net.errors import DatasetError
from imis_net.losses import InteractiveLoss
from imis_net.networks.imis_net import IMISNet
from imis_net.simulation import box_offsets, boxes_around, clicks_within, correction_clicks, random_shares


@dataclass(frozen=True)
class InteractionPolicy:
    """How the simulated annotator begins and goes on.

    Attributes:
        first_prompts: name -> weight; a name joins ``click``, ``box`` and ``text`` by ``+``.
        num_rounds: K, corrective rounds after the first prompt.
        keep_clicks: send all clicks so far with each round, as the viewers do; otherwise only the new one.
        mask_probability: chance of a round to get the previous mask as a prompt.
        max_offset_px: the box's jitter per side.
        closest_fraction: the first click falls on this share of the target's pixels, those nearest to its centroid.
    """

    first_prompts: dict[str, float]
    num_rounds: int = 8
    keep_clicks: bool = False
    mask_probability: float = 1.0
    max_offset_px: int = 5
    closest_fraction: float = 1.0

    def draw_first(self, rng: np.random.Generator, with_text: bool) -> set[str]:
        names = [n for n in self.first_prompts if with_text or "text" not in n.split("+")]
        weights = np.array([self.first_prompts[n] for n in names], float)
        if not weights.sum() > 0:
            raise DatasetError(f"no first prompt left of {list(self.first_prompts)} for targets without names")
        return set(str(rng.choice(names, p=weights / weights.sum())).split("+"))


@dataclass
class InteractiveStep:
    """Computes the loss of an image's targets, or of several images' in one call, and each round's mean Dice."""

    network: IMISNet
    policy: InteractionPolicy
    loss: InteractiveLoss
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def __call__(
        self,
        features: tuple[Tensor, ...],
        targets: Tensor,
        texts: Sequence[str] | None,
        rng: np.random.Generator,
        pixel_size: tuple[float, float] = (1.0, 1.0),
    ) -> tuple[Tensor, list[float]]:
        """Interact with one image: the mean loss over rounds, and the mean Dice after each.

        See ``rounds`` for the arguments.
        """
        losses, dices = zip(*self.rounds(features, targets, texts, [rng], [pixel_size]), strict=True)
        return torch.stack(losses).mean(), [float(d) for d in dices]

    def rounds(
        self,
        features: tuple[Tensor, ...],
        targets: Tensor,
        texts: Sequence[str] | None,
        rngs: Sequence[np.random.Generator],
        pixel_sizes: Sequence[tuple[float, float]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The loss and the mean Dice of each round in turn; whoever calls may free a round's graph before the next.

        Nothing waits for a GPU, so that its next round is on its way while it computes this one. Several images share
        a decoder call when their prompts are of the same kinds, so the first image's generator draws those for all;
        where the clicks fall is each image's own.

        Args:
            features: the encoder's output for I images, batch axis I.
            targets: bool [I * B, S, S], B of each image in turn, none empty; best on the CPU, where asking whether
                one is empty costs no wait.
            texts: the targets' names, or None where not all have one that the network knows.
            rngs, pixel_sizes: for each image its generator, and width and height of the original image's pixels in
                the model frame.

        Raises:
            DatasetError: an empty target.
        """
        if not targets.flatten(1).any(1).all():
            raise DatasetError("empty target: a training target needs at least one pixel")
        num_targets = len(targets) // len(rngs)
        targets = targets.to(features[0].device, non_blocking=True)
        if len(rngs) > 1:  # one image is shared by its targets without a copy
            features = tuple(f.repeat_interleave(num_targets, dim=0) for f in features)
        rngs = [rng for rng in rngs for _ in range(num_targets)]
        sizes = [size for size in pixel_sizes for _ in range(num_targets)]
        truth = targets[:, None].to(features[0].dtype)
        prompt = self._first_prompt(targets, texts, rngs, sizes)
        for round_index in range(self.policy.num_rounds + 1):
            with self.autocast():
                output = self.network.predict_masks(features, **prompt)
            low_res, iou = output.low_res_masks.float(), output.iou_predictions.float()
            rows = torch.arange(len(iou), device=iou.device)
            best = low_res[rows, iou[:, 1:].argmax(1) + 1][:, None].detach()
            predicted = self._at_full_size(best)
            yield self.loss(low_res, iou, truth), _mean_dice(predicted, targets)
            if round_index < self.policy.num_rounds:
                prompt = self._next_prompt(prompt, best, predicted, targets, rngs)

    def _at_full_size(self, low_res: Tensor) -> Tensor:
        """Logits [B, 1, S/4, S/4] -> bool [B, S, S]."""
        side = self.network.image_size
        full = F.interpolate(low_res, size=(side, side), mode="bilinear", align_corners=False)
        return full[:, 0] > 0

    def _first_prompt(
        self,
        targets: Tensor,
        texts: Sequence[str] | None,
        rngs: Sequence[np.random.Generator],
        pixel_sizes: Sequence[tuple[float, float]],
    ) -> dict[str, Tensor | None]:
        """Generators and pixel sizes are each target's."""
        kinds = self.policy.draw_first(rngs[0], with_text=texts is not None)
        prompt: dict[str, Tensor | None] = dict.fromkeys(
            ("point_coords", "point_labels", "boxes", "text", "low_res_masks")
        )
        if "click" in kinds:
            prompt["point_coords"] = clicks_within(targets, random_shares(rngs), self.policy.closest_fraction)[:, None]
            prompt["point_labels"] = torch.ones(len(targets), 1, dtype=torch.long, device=targets.device)
        if "box" in kinds:
            offset = self.policy.max_offset_px
            offsets = [box_offsets(rng, offset, size) for rng, size in zip(rngs, pixel_sizes, strict=True)]
            prompt["boxes"] = boxes_around(targets, torch.from_numpy(np.stack(offsets)))
        if "text" in kinds and texts is not None:
            prompt["text"] = self.network.encode_text(texts)
        return prompt

    def _next_prompt(
        self,
        prompt: dict[str, Tensor | None],
        best: Tensor,
        predicted: Tensor,
        targets: Tensor,
        rngs: Sequence[np.random.Generator],
    ) -> dict[str, Tensor | None]:
        """The next round's prompt; a target without error gets a confirming click, so that all have equally many."""
        clicks, kinds = correction_clicks(predicted, targets, random_shares(rngs))
        new_coords, new_labels = clicks[:, None], kinds[:, None]
        if self.policy.keep_clicks and prompt["point_coords"] is not None and prompt["point_labels"] is not None:
            new_coords = torch.cat([prompt["point_coords"], new_coords], dim=1)
            new_labels = torch.cat([prompt["point_labels"], new_labels], dim=1)
        keep_mask = rngs[0].random() < self.policy.mask_probability
        return {
            "point_coords": new_coords,
            "point_labels": new_labels,
            "boxes": prompt["boxes"] if self.policy.keep_clicks else None,
            "text": prompt["text"] if self.policy.keep_clicks else None,
            "low_res_masks": best if keep_mask else None,
        }


def _mean_dice(predicted: Tensor, truth: Tensor) -> Tensor:
    overlap = (predicted & truth).sum((1, 2))
    return (2 * overlap / (predicted.sum((1, 2)) + truth.sum((1, 2)))).mean()
