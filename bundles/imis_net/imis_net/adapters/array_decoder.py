"""``IMISNet.predict_masks`` where something else decodes: prompts as arrays by name, the answers as a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from imis_net.networks.mask_decoder import MaskPrediction
from imis_net.networks.prompt_encoder import labelled_points
from imis_net.serving.tensors import FEATURES, LOW_RES_MASKS, POINT_COORDS, POINT_LABELS, TEXT

Decode = Callable[[Sequence[Tensor], dict[str, np.ndarray]], Sequence[np.ndarray]]
"""An image's features, and as many inputs by name as the prompts have -> the decoder's outputs, in the order of
``tensors.PREDICTIONS``."""


class ArrayDecoder:
    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def predict_masks(
        self,
        features: tuple[Tensor, ...],
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        text: Tensor | None = None,
        low_res_masks: Tensor | None = None,
    ) -> MaskPrediction:
        """As ``IMISNet.predict_masks``, without its tokens; a part that the prompts lack is left out of the call."""
        coords, labels = labelled_points(point_coords, point_labels, boxes, text, low_res_masks)
        prompts = {POINT_COORDS: coords, POINT_LABELS: labels, TEXT: text, LOW_RES_MASKS: low_res_masks}
        given = {name: as_array(value) for name, value in prompts.items() if value is not None}
        answers = self._decode(features, given)
        masks, ious, semantic = map(torch.from_numpy, answers)
        return MaskPrediction(masks, ious, semantic, tokens=masks[:0], src=masks[:0])


def by_name(features: Sequence[Tensor]) -> dict[str, np.ndarray]:
    return {name: as_array(value) for name, value in zip(FEATURES, features, strict=False)}


def as_array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.contiguous().numpy() if isinstance(value, Tensor) else value
