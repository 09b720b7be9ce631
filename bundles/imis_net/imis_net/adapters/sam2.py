"""Segment Anything 2 and 2.1 on single images behind the Segmenter contract.

Source: arXiv 2408.00714; network and image predictor are the package ``sam2``'s own. Its predictor keeps an image's
features; here they travel in the embedding instead, so that users cannot disturb one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sam2.build_sam import build_sam2
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor

from imis_net.adapters.sam import check_rgb
from imis_net.checkpoint import fill, read_state_dict
from imis_net.errors import CheckpointError, PromptError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import digest_of
from imis_net.transforms import Frame

_LAST_BLOCK = "image_encoder.trunk.blocks.{}.norm1.weight"
SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}
"""Width of a patch embedding and number of blocks to the size in a configuration's name."""


class Sam2Segmenter:
    """SAM 2's own protocol: the image stretched to a square, three candidates for a lone click, one for any other."""

    known_texts: tuple[str, ...] = ()

    def __init__(self, network: SAM2Base) -> None:
        self.network = network.eval()
        self.frame = Frame(network.image_size)
        self.encoder_digest = digest_of(network.image_encoder, "sam2")
        self.weights_digest = digest_of(network, "sam2")

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        check_rgb(image)
        predictor = SAM2ImagePredictor(self.network)
        predictor.set_image(image)
        features = (predictor._features["image_embed"], *predictor._features["high_res_feats"])
        return ImageEmbedding(features, (image.shape[0], image.shape[1]), self.encoder_digest)

    @torch.inference_mode()
    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        if embedding.encoder_digest != self.encoder_digest:
            raise PromptError("image embedding was made by another encoder; encode the image again")
        prompt.check_inside(*embedding.original_size)
        if prompt.text is not None:
            raise PromptError("this segmenter knows no text: expected clicks, a box or a previous mask, got a text")
        masks, iou, low_res = self._predictor(embedding).predict(
            prompt.point_coords,
            prompt.point_labels,
            prompt.box,
            None if prompt.low_res_mask is None else prompt.low_res_mask[None],
            multimask_output=prompt.num_clicks == 1 and prompt.box is None and prompt.low_res_mask is None,
        )
        best = int(iou.argmax())
        return Prediction(masks[best] > 0, float(np.clip(iou[best], 0, 1)), low_res[best])

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [self.predict(embedding, prompt) for prompt in prompts]

    def _predictor(self, embedding: ImageEmbedding) -> SAM2ImagePredictor:
        predictor = SAM2ImagePredictor(self.network)
        embed, *high_res = embedding.features
        predictor._features = {"image_embed": embed, "high_res_feats": high_res}
        predictor._orig_hw = [embedding.original_size]
        predictor._is_image_set = True
        return predictor


def load_sam2(weights: Path) -> Sam2Segmenter:
    """Meta's ``sam2_hiera_*.pt`` or ``sam2.1_hiera_*.pt``; which of them is seen from its tensors.

    Raises:
        CheckpointError: no such file, or another model's.
    """
    if not weights.is_file():
        raise CheckpointError(f"no weights: expected a file {weights.name}")
    state = read_state_dict(weights)
    network = build_sam2(_config(state, weights.name), device="cpu")
    report = fill(network, state)
    if report.problems():
        raise CheckpointError(f"{weights.name} does not fit this network\n{report.problems()}")
    return Sam2Segmenter(network)


def _config(state: Mapping[str, Tensor], name: str) -> str:
    """The package's configuration for these tensors; version 2.1 alone encodes the order of objects in time."""
    patches = state.get("image_encoder.trunk.patch_embed.proj.weight")
    num_blocks = sum(_LAST_BLOCK.format(i) in state for i in range(64))
    size = None if patches is None else SIZES.get((patches.shape[0], num_blocks))
    if size is None:
        raise CheckpointError(f"{name} does not hold a Segment Anything 2 image encoder")
    version = "sam2.1" if "obj_ptr_tpos_proj.weight" in state else "sam2"
    return f"configs/{version}/{version}_hiera_{size}.yaml"
