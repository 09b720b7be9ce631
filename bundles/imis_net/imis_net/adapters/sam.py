"""Segment Anything (ViT-B, L or H) behind the Segmenter contract.

Source: arXiv 2304.02643; the network is the package ``segment_anything`` itself, its state passed instead of kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from imis_net.checkpoint import fill, read_state_dict
from imis_net.errors import CheckpointError, ImageError, PromptError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import digest_of
from imis_net.transforms import Frame

SIZES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Width of a patch embedding to the builder's name."""


class SamSegmenter:
    """SAM's own protocol: longest side to the frame, three candidates for a lone click and one for any other prompt."""

    known_texts: tuple[str, ...] = ()

    def __init__(self, network: Sam) -> None:
        self.network = network.eval()
        self.frame = Frame(network.image_encoder.img_size)  # its side; SAM's own keeps the aspect ratio
        self.encoder_digest = digest_of(network.image_encoder, type(self).__name__)
        self.weights_digest = digest_of(network, type(self).__name__)

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        check_rgb(image)
        frame = self.network.preprocess(self._to_frame(image))
        return ImageEmbedding(
            (self.network.image_encoder(frame),), (image.shape[0], image.shape[1]), self.encoder_digest
        )

    @torch.inference_mode()
    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        if embedding.encoder_digest != self.encoder_digest:
            raise PromptError("image embedding was made by another encoder; encode the image again")
        prompt.check_inside(*embedding.original_size)
        self._check_kind(prompt)
        points, box, low_res = self._prompt_tensors(prompt, embedding.original_size)
        sparse, dense = self.network.prompt_encoder(points=points, boxes=box, masks=low_res)
        masks, iou = self.network.mask_decoder(
            image_embeddings=embedding.features[0],
            image_pe=self.network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self._is_ambiguous(prompt),
        )
        best = int(iou[0].argmax())
        chosen = masks[:, best : best + 1]
        mask = self._to_original(chosen, embedding.original_size)[0, 0] > 0
        return Prediction(mask.numpy(), float(iou[0, best].clamp(0, 1)), chosen[0, 0].numpy())

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        return [self.predict(embedding, prompt) for prompt in prompts]

    def _to_frame(self, image: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] -> [1, 3, h, w] on the 0..255 scale; ``preprocess`` normalises and pads it."""
        resized = ResizeLongestSide(self.frame.side).apply_image(image)
        return torch.tensor(resized).permute(2, 0, 1)[None].float()

    def _scaled(self, xy_px: np.ndarray, size: tuple[int, int]) -> Tensor:
        """(x, y) [..., 2] of the original image -> [1, N, 2] of the frame."""
        return torch.tensor(ResizeLongestSide(self.frame.side).apply_coords(xy_px.reshape(-1, 2), size))[None].float()

    def _to_original(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        frame = ResizeLongestSide.get_preprocess_shape(*size, self.frame.side)
        return self.network.postprocess_masks(logits, frame, size)

    def _is_ambiguous(self, prompt: Prompt) -> bool:
        return prompt.num_clicks == 1 and prompt.box is None and prompt.low_res_mask is None

    def _check_kind(self, prompt: Prompt) -> None:
        if prompt.text is not None:
            raise PromptError("this segmenter knows no text: expected clicks, a box or a previous mask, got a text")

    def _prompt_tensors(
        self, prompt: Prompt, size: tuple[int, int]
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None, Tensor | None]:
        points = box = low_res = None
        if prompt.point_coords is not None and prompt.point_labels is not None:
            points = (self._scaled(prompt.point_coords, size), torch.tensor(prompt.point_labels)[None])
        if prompt.box is not None:
            box = self._scaled(prompt.box, size).reshape(1, 4)
        if prompt.low_res_mask is not None:
            side = 4 * self.network.prompt_encoder.image_embedding_size[0]
            if prompt.low_res_mask.shape != (side, side):
                raise PromptError(f"previous mask: expected {[side] * 2}, got {list(prompt.low_res_mask.shape)}")
            low_res = torch.tensor(prompt.low_res_mask)[None, None]
        return points, box, low_res


def load_sam(weights: Path) -> SamSegmenter:
    """Meta's ``sam_vit_{b,l,h}_*.pth``; which of them is seen from its shapes.

    Raises:
        CheckpointError: no such file, or another model's.
    """
    return SamSegmenter(load_network(weights, lambda size: sam_model_registry[size]()))


def load_network(weights: Path, build: Callable[[str], Sam]) -> Sam:
    """A network filled strictly from a file in the published layout; ``build`` takes a builder's name."""
    if not weights.is_file():
        raise CheckpointError(f"no weights: expected a file {weights.name}")
    state = read_state_dict(weights)
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None or patches.shape[0] not in SIZES:
        raise CheckpointError(f"{weights.name} does not hold a Segment Anything image encoder")
    network = build(SIZES[patches.shape[0]])
    report = fill(network, state)
    if report.problems():
        raise CheckpointError(f"{weights.name} does not fit this network\n{report.problems()}")
    return network


def check_rgb(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ImageError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
