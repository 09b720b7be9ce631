"""Encode an image once, predict as many masks as there are prompts: the contract, and its torch implementation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from imis_net.checkpoint import load_weights
from imis_net.errors import CheckpointError, PromptError
from imis_net.networks.build import BUILDERS
from imis_net.networks.imis_net import IMISNet
from imis_net.networks.mask_decoder import MaskPrediction
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.simulation import boxes_around
from imis_net.transforms import Frame

BUNDLE_DIR = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = "imis_net_compact"
COMPACT_MASK_THRESHOLD = -0.5
"""Where the compact model's masks end, in logits. The focal loss weighs background three times, so that a pixel of even
odds learns a logit below 0. Chosen by box and click Dice on the patients that chose the checkpoint."""
COMPACT_STABILITY_WEIGHT = 0.2
"""Of three candidates for a click it takes a better one so: 0.717 instead of 0.704 Dice of training patients, by whose
clicks this was chosen."""
COMPACT_MAX_ENLARGEMENT = 4.0
"""Of its images' axes. Chosen with sets that it is tested on in view, where nuclei in images of some 60 pixels gain 0.2
of box Dice and tumours in reslices of a few thick slices 0.06."""
MIN_BOX_FILL = 0.05
"""Share of a tight box below which a mask is hardly what was boxed."""
MIN_CLICKED_AREA = 4
"""Low-resolution pixels: the smallest thing that a click can mean."""


class Segmenter(Protocol):
    """Anything that can be prompted. Holds no state between calls, so that users cannot disturb one another."""

    @property
    def frame(self) -> Frame:
        """Where images, prompts and previous masks go."""

    @property
    def encoder_digest(self) -> str:
        """Identifies what makes the embeddings; equal digests, interchangeable embeddings."""

    @property
    def weights_digest(self) -> str:
        """Identifies all weights together."""

    @property
    def known_texts(self) -> tuple[str, ...] | None:
        """The names that a text prompt may be, None where any text is understood, () where text is not."""

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        """uint8 RGB [H, W, 3] -> embedding; slow, once per image.

        Raises:
            ImageError: not such an image.
        """

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        """One target; fast, once per click.

        Raises:
            PromptError: a prompt that does not fit the image or the network.
        """

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        """Several targets of one image, in the prompts' order."""


class TorchSegmenter:
    """The contract on an ``IMISNet``. Safe to call from several threads."""

    def __init__(self, network: IMISNet, device: str | torch.device = "cpu") -> None:
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.frame = model_frame(network.name, network.image_size)
        self.rule = answer_rule(network.name)
        self.encoder_digest = digest_of(network.image_encoder, repr(self.frame))
        self.weights_digest = digest_of(network, self.encoder_digest, repr(self.rule))

    @cached_property
    def image_encoder(self) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        """The network's, of weights as they are when it is first asked for."""
        return self.network.image_encoder.for_inference(self.frame.side)

    @property
    def known_texts(self) -> tuple[str, ...] | None:
        return self.network.known_texts

    @torch.inference_mode()
    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        pixels = self.frame.image(image).to(self.device)
        features = self.image_encoder((pixels - self.network.pixel_mean) / self.network.pixel_std)
        return ImageEmbedding(tuple(features), (image.shape[0], image.shape[1]), self.encoder_digest)

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        return self.predict_batch(embedding, [prompt])[0]

    @torch.inference_mode()
    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        predictions = self._predict(embedding, prompts, None)
        return [predictions[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def predict_confident(
        self, embedding: ImageEmbedding, prompts: Sequence[Prompt], min_iou: float
    ) -> dict[int, Prediction]:
        """The answers of ``predict_batch`` whose predicted IoU is above a bound, by the prompts' positions.

        A network that runs here does not draw the others, which is most of the work where few pass.
        """
        predictions = self._predict(embedding, prompts, min_iou)
        return {i: predictions[i] for i in sorted(predictions) if predictions[i].iou_prediction > min_iou}

    def _predict(
        self, embedding: ImageEmbedding, prompts: Sequence[Prompt], min_iou: float | None
    ) -> dict[int, Prediction]:
        """By the prompts' positions; those surely not above the bound may be missing."""
        if embedding.encoder_digest != self.encoder_digest:
            raise PromptError("image embedding was made by another encoder; encode the image again")
        height, width = embedding.original_size
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            prompt.check_inside(height, width)
            groups[_kind(prompt)].append(i)
        predictions: dict[int, Prediction] = {}
        # Only prompts of one kind and number of clicks share a call: padding would change the masks.
        for members in groups.values():
            answers = self._predict_alike(embedding, [prompts[i] for i in members], min_iou)
            predictions.update((members[row], answer) for row, answer in answers)
        return predictions

    def _predict_alike(
        self, embedding: ImageEmbedding, prompts: Sequence[Prompt], min_iou: float | None
    ) -> Iterable[tuple[int, Prediction]]:
        size = embedding.original_size
        tensors = self._tensors(prompts, size)
        min_area = None if self.rule.may_answer_nothing else _min_area(tensors, len(prompts))
        given = {key for key, tensor in tensors.items() if tensor is not None}
        is_grounded_name = self.rule.grounds_names and given == {"text"}
        if min_iou is not None and isinstance(self.network, IMISNet) and not is_grounded_name:
            rows, output = self.network.predict_confident(embedding.features, min_iou, **tensors)
            if not len(rows):
                return []
            min_area = None if min_area is None else min_area[rows.cpu()]
        else:
            rows, output = torch.arange(len(prompts)), self.network.predict_masks(embedding.features, **tensors)
        answers = self._answers(output, min_area, size, is_grounded_name)
        if is_grounded_name:
            answers = self._looked_at_again(embedding, prompts, answers, min_iou or 0.0)
        return zip(rows.tolist(), answers, strict=True)

    def _looked_at_again(
        self, embedding: ImageEmbedding, names: Sequence[Prompt], answers: list[Prediction], min_iou: float
    ) -> list[Prediction]:
        """Names that were found above a bound, asked again with the box around what was found; the ratings stay."""
        found = [i for i, a in enumerate(answers) if a.iou_prediction > min_iou and a.mask.any()]
        if not found:
            return answers
        masks = torch.from_numpy(np.stack([answers[i].mask for i in found]))
        boxes = boxes_around(masks, torch.zeros(len(found), 4)).numpy()
        asked = [
            replace(names[i], box=box, low_res_mask=answers[i].low_res_mask)
            for i, box in zip(found, boxes, strict=True)
        ]
        for row, again in self._predict_alike(embedding, asked, None):
            answers[found[row]] = replace(again, iou_prediction=answers[found[row]].iou_prediction)
        return answers

    def _answers(
        self, output: MaskPrediction, min_area: torch.Tensor | None, size: tuple[int, int], is_grounded_name: bool
    ) -> list[Prediction]:
        if is_grounded_name:
            output = replace(output, iou_predictions=_expected_iou(output.low_res_masks, self.rule.mask_threshold))
        low_res, iou, index = output.best(min_area, self.rule.stability_weight, self.rule.mask_threshold)
        logits = self.frame.to_original(low_res, size)
        masks = (logits > self.rule.mask_threshold)[:, 0].cpu().numpy()
        rows = torch.arange(len(index))
        semantic = output.semantic_embeddings[rows, index].cpu().numpy()
        return [
            Prediction(masks[b], float(iou[b].clamp(0, 1)), low_res[b, 0].cpu().numpy(), semantic[b])
            for b in range(len(index))
        ]

    def _tensors(self, prompts: Sequence[Prompt], size: tuple[int, int]) -> dict[str, torch.Tensor | None]:
        """Alike prompts as the network's arguments, in the model frame."""
        side = self.frame.side
        coords = self._stacked([p.point_coords for p in prompts])
        boxes = self._stacked([p.box for p in prompts])
        masks = self._stacked([p.low_res_mask for p in prompts])
        texts = [p.text for p in prompts if p.text is not None]
        if masks is not None and masks.shape[1:] != (side // 4, side // 4):
            raise PromptError(f"previous mask: expected {[side // 4] * 2}, got {list(masks.shape[1:])}")
        return {
            "point_coords": None if coords is None else self.frame.points(coords, size),
            "point_labels": self._stacked([p.point_labels for p in prompts]),
            "boxes": None if boxes is None else self.frame.boxes(boxes, size),
            "text": self.network.encode_text(texts) if texts else None,
            "low_res_masks": None if masks is None else masks[:, None],
        }

    def _stacked(self, arrays: Sequence[np.ndarray | None]) -> torch.Tensor | None:
        """Alike prompts have a part all or none."""
        given = [a for a in arrays if a is not None]
        return torch.from_numpy(np.stack(given)).to(self.device) if given else None


@dataclass(frozen=True)
class AnswerRule:
    """How a network's candidates become one mask.

    Attributes:
        may_answer_nothing: whether an empty mask is an answer to a box or a click.
        mask_threshold: the logit above which a pixel belongs to the mask.
        stability_weight: what a candidate gains by depending little on where the threshold lies.
        grounds_names: whether the network finds names past the token that it rates masks by. Then the predicted IoU of
            a name alone, and which candidate is taken, follow from the certainty of the mask's pixels, and what was
            found is asked again with the box around it.
    """

    may_answer_nothing: bool
    mask_threshold: float
    stability_weight: float
    grounds_names: bool


PUBLISHED_RULE = AnswerRule(may_answer_nothing=True, mask_threshold=0.0, stability_weight=0.0, grounds_names=False)
COMPACT_RULE = AnswerRule(
    may_answer_nothing=False,
    mask_threshold=COMPACT_MASK_THRESHOLD,
    stability_weight=COMPACT_STABILITY_WEIGHT,
    grounds_names=True,
)


def answer_rule(name: str) -> AnswerRule:
    """The rule of the network of this name: IMIS-Net's published one, or the compact model's own."""
    return COMPACT_RULE if name == DEFAULT_MODEL else PUBLISHED_RULE


def _expected_iou(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Logits [..., h, w] -> [...] the IoU that a mask of those above the threshold has with a target whose pixels are
    as likely as they say, even odds at the threshold; 0 for an empty mask."""
    likely, mask = (logits - threshold).sigmoid(), logits > threshold
    common = (likely * mask).sum((-2, -1))
    return common / (likely.sum((-2, -1)) + mask.sum((-2, -1)) - common).clamp_min(1e-6)


def _min_area(tensors: Mapping[str, torch.Tensor | None], num_prompts: int) -> torch.Tensor:
    """[B] low-resolution pixels that a mask must have: a share of the box, a few where somebody clicked on something.

    Text alone may name what is not there.
    """
    boxes, labels = tensors["boxes"], tensors["point_labels"]
    area = torch.zeros(num_prompts)
    if labels is not None:
        area += MIN_CLICKED_AREA * (labels == 1).any(1).cpu()
    if boxes is not None:
        sides = (boxes.cpu().float().reshape(-1, 2, 2).diff(dim=1)[:, 0] / 4).clamp(min=0)
        area = torch.maximum(area, MIN_BOX_FILL * sides.prod(dim=1))
    return area


def model_frame(name: str, image_size: int) -> Frame:
    """The frame of the network of this name: the reference's nearest stretching, or the compact model's own."""
    return Frame(image_size, "bilinear", COMPACT_MAX_ENLARGEMENT) if name == DEFAULT_MODEL else Frame(image_size)


def load_segmenter(
    name: str = DEFAULT_MODEL, weights: Path | str | None = None, device: str = "cpu", **architecture: int
) -> TorchSegmenter:
    """A model by name with its weights.

    Args:
        name: a key of ``networks.build.BUILDERS``.
        weights: a safetensors file; by default ``models/<name>.safetensors`` of the bundle.
        architecture: passed to the builder, such as ``image_size`` or ``decoder_dim``.

    Raises:
        CheckpointError: unknown name, no such file, or a file that does not fit.
    """
    if name not in BUILDERS:
        raise CheckpointError(f"unknown model: got {name!r}, expected one of {', '.join(BUILDERS)}")
    path = weights_path(name, weights)
    if not path.is_file():
        raise CheckpointError(
            f"no weights for {name}: expected a file {path.name} in {path.parent.name}/; "
            "convert published ones with scripts/convert_checkpoint.py"
        )
    network = BUILDERS[name](**architecture)
    load_weights(network, path)
    network.prompt_encoder.prepare()  # here, where nobody else has the network yet: it moves weights
    return TorchSegmenter(network, device)


def weights_path(name: str, weights: Path | str | None = None) -> Path:
    """A model's weights file: the one given, else ``models/<name>.safetensors`` of the bundle."""
    return Path(weights) if weights else BUNDLE_DIR / "models" / f"{name}.safetensors"


def _kind(prompt: Prompt) -> tuple[object, ...]:
    return (prompt.num_clicks, prompt.box is None, prompt.text is None, prompt.low_res_mask is None)


def digest_of(module: nn.Module, *facts: str) -> str:
    """16 hexadecimal digits of a module's tensors and of the facts that change what it answers."""
    return _digest(sorted(module.state_dict().items()), *facts)


def trunk_digest(network: IMISNet, tensors: Iterable[tuple[str, torch.Tensor]] | None = None) -> str:
    """Identifies what makes a trunk's maps: its weights and the network's frame.

    Args:
        tensors: the trunk's, in order of keys, where the network was made without one (``checkpoint.trunk_tensors``).
    """
    own = sorted(network.image_encoder.trunk.state_dict().items()) if tensors is None else tensors
    return _digest(own, repr(model_frame(network.name, network.image_size)))


def _digest(tensors: Iterable[tuple[str, torch.Tensor]], *facts: str) -> str:
    digest = hashlib.sha256("|".join(facts).encode())
    for key, value in tensors:
        if key.endswith("num_batches_tracked"):  # of training alone; files do not keep it
            continue
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
