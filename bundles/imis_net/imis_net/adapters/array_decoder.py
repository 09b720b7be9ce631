"""``IMISNet.predict_masks`` where something else decodes: prompts as arrays by name, the answers as a prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from imis_net.networks.mask_decoder import MaskPrediction
from imis_net.networks.prompt_encoder import labelled_points
from imis_net.serving.tensors import FEATURES, LOW_RES_MASKS, POINT_COORDS, POINT_LABELS, TEXT

Decode = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
"""A decoder's inputs by name, as many as the prompts have -> its outputs, in the order of ``tensors.PREDICTIONS``."""


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
        inputs = {**dict(zip(FEATURES, features, strict=False)), POINT_COORDS: coords, POINT_LABELS: labels}
        inputs |= {name: t for name, t in ((TEXT, text), (LOW_RES_MASKS, low_res_masks)) if t is not None}
        answers = self._decode({name: as_array(value) for name, value in inputs.items()})
        masks, ious, semantic = map(torch.from_numpy, answers)
        return MaskPrediction(masks, ious, semantic, tokens=masks[:0], src=masks[:0])


def as_array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.contiguous().numpy() if isinstance(value, Tensor) else value
