"""Clicks, box and previous mask drawn as maps at the mask's resolution and encoded by convolutions.

A token tells a network where a click is only after attention has learned to read position encodings, which takes
far more data than a hospital has; a drawn click is where it is from the first step on.
Source: RITM (arXiv 2102.06583) draws clicks as disks; the box's ellipse is the best guess that ignores the image.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from imis_net.networks.layers import LayerNorm2d

NUM_MAPS = 8
NARROW_SIGMA_CELLS = 1.5
WIDE_SIGMA_CELLS = 8.0
LOGIT_SCALE = 4.0


class DensePromptEncoder(nn.Module):
    """Maps at S/4 -> features at S/16, S/8 and S/4, coarsest first, to be added to the image's."""

    def __init__(self, image_size: int, dims: tuple[int, int, int]) -> None:
        """``dims``: channels at S/16, S/8 and S/4."""
        super().__init__()
        dim16, dim8, dim4 = dims
        self.image_size = image_size
        self.mask_side = image_size // 4
        self.to_4 = nn.Sequential(nn.Conv2d(NUM_MAPS, dim4, 3, padding=1), LayerNorm2d(dim4))
        self.to_8 = nn.Sequential(nn.GELU(), nn.Conv2d(dim4, dim8, 3, stride=2, padding=1), LayerNorm2d(dim8))
        self.to_16 = nn.Sequential(nn.GELU(), nn.Conv2d(dim8, dim16, 3, stride=2, padding=1), LayerNorm2d(dim16))

    def forward(
        self,
        coords: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        low_res_masks: Tensor | None,
        num_targets: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``PromptEncoder.forward`` for the arguments -> [B, dim16, S/16, S/16], [B, dim8, ...], [B, dim4, ...]."""
        maps = self.draw(coords, labels, boxes, low_res_masks, num_targets)
        at_4 = self.to_4(maps)
        at_8 = self.to_8(at_4)
        return self.to_16(at_8), at_8, at_4

    def draw(
        self,
        coords: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        low_res_masks: Tensor | None,
        num_targets: int,
    ) -> Tensor:
        """[B, 8, S/4, S/4]: clicks on and off the target (narrow, wide), box, its ellipse, mask, is there one."""
        side = self.mask_side
        like = next(self.parameters())
        zeros = like.new_zeros(num_targets, 1, side, side)
        cells = torch.arange(side, device=like.device, dtype=like.dtype)
        maps = [zeros] * 4
        if coords is not None and labels is not None:
            maps = self._draw_clicks(coords, labels, cells)
        maps += self._draw_boxes(boxes, cells) if boxes is not None else [zeros] * 2
        if low_res_masks is not None:
            maps += [torch.tanh(low_res_masks / LOGIT_SCALE), torch.ones_like(zeros)]
        else:
            maps += [zeros] * 2
        return torch.cat(maps, dim=1)

    def _to_cells(self, px: Tensor) -> Tensor:
        return (px + 0.5) * (self.mask_side / self.image_size) - 0.5

    def _draw_clicks(self, coords: Tensor, labels: Tensor, cells: Tensor) -> list[Tensor]:
        at = self._to_cells(coords)
        dx = rearrange(cells, "w -> 1 1 1 w") - rearrange(at[..., 0], "b n -> b n 1 1")
        dy = rearrange(cells, "h -> 1 1 h 1") - rearrange(at[..., 1], "b n -> b n 1 1")
        distance2 = dx * dx + dy * dy
        maps = []
        for kind in (1, 0):
            is_kind = rearrange((labels == kind).to(cells.dtype), "b n -> b n 1 1")
            for sigma in (NARROW_SIGMA_CELLS, WIDE_SIGMA_CELLS):
                blobs = torch.exp(-distance2 / (2 * sigma * sigma)) * is_kind
                maps.append(blobs.amax(dim=1, keepdim=True))
        return maps

    def _draw_boxes(self, boxes: Tensor, cells: Tensor) -> list[Tensor]:
        x0, y0, x1, y1 = (rearrange(v, "b -> b 1 1 1") for v in self._to_cells(boxes).unbind(-1))
        x, y = rearrange(cells, "w -> 1 1 1 w"), rearrange(cells, "h -> 1 1 h 1")
        inside = torch.sigmoid(2 * torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y)) + 1)
        # Signed: 1 at the centre, 0 on the ellipse that fills the box, -1 far outside.
        rx, ry = (x1 - x0) / 2 + 0.5, (y1 - y0) / 2 + 0.5
        radius = torch.sqrt(((x - (x0 + x1) / 2) / rx) ** 2 + ((y - (y0 + y1) / 2) / ry) ** 2 + 1e-6)
        return [inside, (1 - radius).clamp(min=-1)]
