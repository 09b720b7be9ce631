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
from imis_net.networks.point_kinds import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, TOP_LEFT

NUM_MAPS = 8
NARROW_SIGMA_CELLS = 1.5
WIDE_SIGMA_CELLS = 8.0
LOGIT_SCALE = 4.0
FAR_CELLS2 = 1e8
"""A squared distance at which a click is not seen."""
LEAST_EXPONENT = -60.0
"""Below it the exponential runs into denormal numbers, with which a processor takes ten times as long."""


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

    def forward(self, coords: Tensor, labels: Tensor, low_res_masks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """See ``draw`` for the arguments -> [B, dim16, S/16, S/16], [B, dim8, S/8, S/8], [B, dim4, S/4, S/4]."""
        maps = self.draw(coords, labels, low_res_masks)
        at_4 = self.to_4(maps)
        at_8 = self.to_8(at_4)
        return self.to_16(at_8), at_8, at_4

    def draw(self, coords: Tensor, labels: Tensor, low_res_masks: Tensor | None) -> Tensor:
        """Points [B, N, 2] of kinds [B, N] (``point_kinds``) and logits [B, 1, S/4, S/4] or None -> [B, 8, S/4, S/4]:
        clicks on and off the target (narrow, wide), box, its ellipse, mask, is there one."""
        side = self.mask_side
        zeros = coords.new_zeros(coords.shape[0], 1, side, side)
        cells = torch.arange(side, device=coords.device, dtype=coords.dtype)
        maps = self._draw_clicks(coords, labels, cells, zeros) + self._draw_boxes(coords, labels, cells)
        if low_res_masks is not None:
            maps += [torch.tanh(low_res_masks / LOGIT_SCALE), torch.ones_like(zeros)]
        else:
            maps += [zeros] * 2
        return torch.cat(maps, dim=1)

    def _to_cells(self, px: Tensor) -> Tensor:
        return (px + 0.5) * (self.mask_side / self.image_size) - 0.5

    def _draw_clicks(self, coords: Tensor, labels: Tensor, cells: Tensor, zeros: Tensor) -> list[Tensor]:
        at = self._to_cells(coords)
        dx = rearrange(cells, "w -> 1 1 1 w") - rearrange(at[..., 0], "b n -> b n 1 1")
        dy = rearrange(cells, "h -> 1 1 h 1") - rearrange(at[..., 1], "b n -> b n 1 1")
        distance2 = dx * dx + dy * dy
        maps = []
        for kind in (FOREGROUND, BACKGROUND):
            is_kind = rearrange(labels == kind, "b n -> b n 1 1")
            far = torch.full_like(zeros, FAR_CELLS2)  # there may be no click
            nearest2 = torch.cat([torch.where(is_kind, distance2, far), far], dim=1).amin(dim=1, keepdim=True)
            for sigma in (NARROW_SIGMA_CELLS, WIDE_SIGMA_CELLS):
                maps.append(torch.exp((-nearest2 / (2 * sigma * sigma)).clamp(min=LEAST_EXPONENT)))
        return maps

    def _draw_boxes(self, coords: Tensor, labels: Tensor, cells: Tensor) -> list[Tensor]:
        corners = [(coords * (labels == kind)[..., None]).sum(dim=1) for kind in (TOP_LEFT, BOTTOM_RIGHT)]
        is_box = rearrange((labels == TOP_LEFT).sum(dim=1), "b -> b 1 1 1") > 0
        boxes = self._to_cells(torch.cat(corners, dim=-1))
        x0, y0, x1, y1 = (rearrange(v, "b -> b 1 1 1") for v in boxes.unbind(-1))
        x, y = rearrange(cells, "w -> 1 1 1 w"), rearrange(cells, "h -> 1 1 h 1")
        inside = torch.sigmoid(2 * torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y)) + 1)
        # Signed: 1 at the centre, 0 on the ellipse that fills the box, -1 far outside.
        rx, ry = (x1 - x0) / 2 + 0.5, (y1 - y0) / 2 + 0.5
        radius = torch.sqrt(((x - (x0 + x1) / 2) / rx) ** 2 + ((y - (y0 + y1) / 2) / ry) ** 2 + 1e-6)
        return [torch.where(is_box, m, torch.zeros_like(m)) for m in (inside, (1 - radius).clamp(min=-1))]
