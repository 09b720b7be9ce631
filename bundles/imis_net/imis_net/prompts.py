"""The two-phase contract's values: what a caller asks (Prompt), what is kept (ImageEmbedding), what comes back
(Prediction).

All three are frozen. Coordinates are (x, y) pixels of the original image; (0, 0) is the centre of its top-left
pixel, so a W x H image spans x in [-0.5, W - 0.5].
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from imis_net.errors import PromptError

MAX_NUM_CLICKS = 256
"""More clicks than a person makes on one target; an upper bound for hostile requests."""
MAX_COORDINATE_PX = 1e6
"""Far beyond any image, far below where float32 overflows and every mask becomes NaN."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One target's prompt: any combination of clicks, a box, a text and a previous mask, at least one of them.

    Attributes:
        point_coords: clicks, float32 [N, 2], (x, y) in original pixels, or None.
        point_labels: int64 [N], 1 foreground and 0 background, or None.
        box: float32 [4], x0, y0, x1, y1 in original pixels, inclusive corners in any order on input, sorted here.
        text: the target's name in plain words, or None.
        low_res_mask: logits of the previous prediction, float32 [S/4, S/4] in the model frame, or None.

    Raises:
        PromptError: no prompt at all, a wrong shape, NaN or infinity, an unknown click label, a box of no area.
    """

    point_coords: np.ndarray | None = None
    point_labels: np.ndarray | None = None
    box: np.ndarray | None = None
    text: str | None = None
    low_res_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the one way to normalise fields of a frozen dataclass
        coords, labels = _checked_points(self.point_coords, self.point_labels)
        set_(self, "point_coords", coords)
        set_(self, "point_labels", labels)
        set_(self, "box", _checked_box(self.box))
        set_(self, "text", _checked_text(self.text))
        set_(self, "low_res_mask", _checked_low_res_mask(self.low_res_mask))
        if self.is_empty:
            raise PromptError("no prompt: expected at least one click, a box, a text or a previous mask, got none")

    @property
    def is_empty(self) -> bool:
        return all(v is None for v in (self.point_coords, self.box, self.text, self.low_res_mask))

    @property
    def num_clicks(self) -> int:
        return 0 if self.point_coords is None else len(self.point_coords)

    def check_inside(self, height_px: int, width_px: int) -> None:
        """Refuse clicks outside the image and boxes that do not touch it.

        Raises:
            PromptError: with the offending coordinates and the image's extent.
        """
        if self.point_coords is not None:
            x, y = self.point_coords[:, 0], self.point_coords[:, 1]
            outside = (x < -0.5) | (y < -0.5) | (x > width_px - 0.5) | (y > height_px - 0.5)
            if outside.any():
                bad = self.point_coords[outside][0]
                raise PromptError(
                    f"click outside the image: got (x={bad[0]:g}, y={bad[1]:g}), "
                    f"expected 0 <= x <= {width_px - 1} and 0 <= y <= {height_px - 1}"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if x1 < -0.5 or y1 < -0.5 or x0 > width_px - 0.5 or y0 > height_px - 0.5:
                raise PromptError(
                    f"box outside the image: got {self.box.tolist()}, image is {width_px} x {height_px} pixels"
                )


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """What the image encoder made of one image; everything that further clicks need.

    Attributes:
        features: tensors with a leading axis of 1: first the embedding [1, C, S/16, S/16], then the finer maps of
            encoders that have them, finest last ([1, C', S/8, S/8], [1, C'', S/4, S/4]).
        original_size: (height, width) of the original image in pixels.
        encoder_digest: identifies the encoder weights that made it; an embedding is useless to any other.
    """

    features: tuple[torch.Tensor, ...]
    original_size: tuple[int, int]
    encoder_digest: str

    @property
    def num_bytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.features)


@dataclass(frozen=True, eq=False)
class Prediction:
    """One target's answer.

    Attributes:
        mask: bool [H, W] at the original size.
        iou_prediction: the network's own estimate of the mask's IoU with the target, clipped to [0, 1].
        low_res_mask: float32 logits [S/4, S/4] in the model frame; the next prompt's ``low_res_mask``.
        semantic_embedding: float32 [512] category embedding, or None where the network has no semantic head.
    """

    mask: np.ndarray
    iou_prediction: float
    low_res_mask: np.ndarray
    semantic_embedding: np.ndarray | None = field(default=None)


def _checked_points(coords: object, labels: object) -> tuple[np.ndarray | None, np.ndarray | None]:
    if coords is None and labels is None:
        return None, None
    if coords is None or labels is None:
        raise PromptError("clicks and labels come together: got one without the other")
    xy = _as_floats(coords, "clicks")
    if xy.size == 0:
        return None, None
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise PromptError(f"clicks: expected a list of [x, y], got shape {list(xy.shape)}")
    if len(xy) > MAX_NUM_CLICKS:
        raise PromptError(f"too many clicks: got {len(xy)}, at most {MAX_NUM_CLICKS}")
    kinds = _as_floats(labels, "click labels")
    if kinds.shape != (len(xy),):
        raise PromptError(f"click labels: expected {len(xy)} of them, got shape {list(kinds.shape)}")
    if not np.isin(kinds, (0, 1)).all():
        raise PromptError(f"click labels: expected 1 (foreground) or 0 (background), got {kinds.tolist()[:8]}")
    return xy, kinds.astype(np.int64)


def _checked_box(box: object) -> np.ndarray | None:
    if box is None:
        return None
    corners = _as_floats(box, "box")
    if corners.shape != (4,):
        raise PromptError(f"box: expected 4 numbers x0, y0, x1, y1, got shape {list(corners.shape)}")
    if np.abs(corners).max() > MAX_COORDINATE_PX:
        raise PromptError(f"box: expected corners near the image, got {corners.tolist()}")
    x0, x1 = sorted((corners[0], corners[2]))
    y0, y1 = sorted((corners[1], corners[3]))
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise PromptError(f"box of no area: got {corners.tolist()}, expected at least 1 pixel on each side")
    return np.array([x0, y0, x1, y1], np.float32)


def _checked_text(text: object) -> str | None:
    if text is not None and not isinstance(text, str):
        raise PromptError(f"text: expected a word or more, got {str(text)[:80]!r}")
    return text.strip() or None if text is not None else None


def _checked_low_res_mask(mask: object) -> np.ndarray | None:
    if mask is None:
        return None
    logits = _as_floats(mask, "previous mask")
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise PromptError(f"previous mask: expected square logits [S/4, S/4], got shape {list(logits.shape)}")
    return logits


def _as_floats(values: object, what: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise PromptError(f"{what}: expected numbers, got {str(values)[:80]!r}") from error
    if not np.isfinite(array).all():
        raise PromptError(f"{what}: expected finite numbers, got {str(values)[:80]!r}")
    return array
