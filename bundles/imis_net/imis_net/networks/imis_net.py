"""The network as a whole: encode an image once, predict masks for any number of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imis_net.errors import PromptError
from imis_net.networks.encoder import ImageEncoder
from imis_net.networks.mask_decoder import MaskDecoder, MaskPrediction
from imis_net.networks.prompt_encoder import PromptEncoder
from imis_net.networks.text_encoder import TextEncoder

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's, on the 0..255 scale, RGB."""


class IMISNet(nn.Module):
    """IMIS-Net: image encoder, text encoder, prompt encoder, mask decoder (arXiv 2411.12814, figure 4)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: ImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        text_encoder: TextEncoder,
        text_projection: nn.Linear,
        name: str,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.text_encoder = text_encoder
        self.text_projection = text_projection
        self.name = name
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        """Side S of the square model frame in pixels."""
        return self.prompt_encoder.image_size

    @property
    def embed_dim(self) -> int:
        return self.prompt_encoder.embed_dim

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def known_texts(self) -> tuple[str, ...] | None:
        """The names that a text prompt may be, None where any text is understood, () where text is not."""
        return self.text_encoder.names if self._understands_text else ()

    @property
    def _understands_text(self) -> bool:
        return self.text_projection.out_features == self.embed_dim

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images [B, 3, S, S] -> embedding [B, C, S/16, S/16] and finer maps, if the encoder has any."""
        return self.image_encoder(images)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Names of targets -> projected text embeddings [B, C].

        Raises:
            PromptError: a name that this network's text encoder cannot know, or that is too long; any text where the
                projection is wider than the decoder, as in the paper's two narrow ablations.
        """
        if not self._understands_text:
            raise PromptError(
                f"this network takes no text: its projection has {self.text_projection.out_features} channels, "
                f"its decoder {self.embed_dim}"
            )
        return self.embed_text(self.text_encoder.tokenize(texts).to(self.device))

    def embed_text(self, tokens: Tensor) -> Tensor:
        """What ``text_encoder.tokenize`` gave -> projected text embeddings [B, C]."""
        return self.text_projection(self.text_encoder(tokens))

    def predict_masks(
        self,
        features: tuple[Tensor, ...],
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        text: Tensor | None = None,
        low_res_masks: Tensor | None = None,
    ) -> MaskPrediction:
        """Predict the masks of B targets; see ``PromptEncoder.forward`` for the prompts' shapes and frames."""
        sparse, dense = self.prompt_encoder(point_coords, point_labels, boxes, text, low_res_masks)
        return self._decode(features, sparse, dense, text)

    def predict_confident(
        self, features: tuple[Tensor, ...], min_iou: float, **prompts: Tensor | None
    ) -> tuple[Tensor, MaskPrediction]:
        """``predict_masks`` of those targets alone of which some mask's predicted IoU is above a bound.

        Returns:
            their rows among the prompts [B'], and their prediction.
        """
        sparse, dense = self.prompt_encoder(**prompts)
        text = prompts.get("text")
        mixed = self.mask_decoder.mix(features, self.prompt_encoder.dense_pe(), sparse, dense, text)
        rows = (mixed.iou_predictions.amax(dim=1) > min_iou).nonzero()[:, 0]
        own = tuple(d if d.shape[0] == 1 else d[rows] for d in dense)
        return rows, self.mask_decoder.draw(mixed.rows(rows), features, own, None if text is None else text[rows])

    def predict_from_points(
        self,
        features: tuple[Tensor, ...],
        coords: Tensor,
        labels: Tensor,
        text: Tensor | None,
        low_res_masks: Tensor | None,
    ) -> MaskPrediction:
        """The same from clicks and boxes in one list, as ``prompt_encoder.labelled_points`` makes it."""
        sparse, dense = self.prompt_encoder.encode(coords, labels, text, low_res_masks)
        return self._decode(features, sparse, dense, text)

    def _decode(
        self, features: tuple[Tensor, ...], sparse: Tensor, dense: tuple[Tensor, ...], text: Tensor | None
    ) -> MaskPrediction:
        return self.mask_decoder(features, self.prompt_encoder.dense_pe(), sparse, dense, text)

    def forward(
        self,
        image: Tensor,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        text: Sequence[str] | None = None,
    ) -> Tensor:
        """Images [B, 3, S, S] on the 0..255 scale -> best mask logits [B, 1, S, S].

        Without a prompt the box is the whole image, so that tools which know only an image can call it. Prompts are
        one target per image: points [B, N, 2], point_labels [B, N], boxes [B, 4], B texts.
        """
        if points is None and boxes is None and text is None:
            whole = image.new_tensor([0, 0, self.image_size - 1, self.image_size - 1])
            boxes = whole.expand(image.shape[0], 4)
        features = self.encode_image((image - self.pixel_mean) / self.pixel_std)
        embedded = self.encode_text(text) if text is not None else None
        best, _, _ = self.predict_masks(features, points, point_labels, boxes, embedded).best()
        return F.interpolate(best, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False)
