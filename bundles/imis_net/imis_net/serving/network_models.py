"""The networks behind the interactive model, each run from a version's folder: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from imis_net.checkpoint import load_weights
from imis_net.errors import ServingError
from imis_net.networks.build import BUILDERS
from imis_net.networks.imis_net import IMISNet
from imis_net.serving import tensors as names
from imis_net.serving.repository import WEIGHTS, Manifest

Arrays = Mapping[str, np.ndarray]


class NetworkModel:
    """One of the three networks; ``run`` is safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load a version and run it once, so that the first user does not pay for what is set up lazily.

        Raises:
            ServingError: no whole version there, or one whose answers are not finite.
            CheckpointError: weights that do not fit.
        """
        self.manifest = Manifest.read(folder)
        self.network: IMISNet = BUILDERS[self.manifest.name](**self.manifest.architecture).eval()
        load_weights(self.network, folder / WEIGHTS)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(self.device)
        for name, array in self.run(self.example()).items():
            if not np.isfinite(array).all():
                raise ServingError(f"{folder.parent.name}/{folder.name}: {name} is not finite")

    def example(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def given(self, inputs: Arrays, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
        """Those of the wanted inputs that are there."""
        return {name: torch.from_numpy(inputs[name]).to(self.device) for name in wanted if name in inputs}


class EncoderModel(NetworkModel):
    def example(self) -> dict[str, np.ndarray]:
        side = self.network.image_size
        return {names.IMAGES: np.zeros((1, 3, side, side), np.float32)}

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        features = self.network.encode_image(self.given(inputs, [names.IMAGES])[names.IMAGES])
        return _arrays(names.FEATURES[: len(features)], features)


class TextModel(NetworkModel):
    """Takes the names themselves, since which can be known is a fact of the weights."""

    def example(self) -> dict[str, np.ndarray]:
        known = self.network.known_texts
        return {names.TEXTS: np.array([b"liver"] if known is None else [n.encode() for n in known[:1]], np.object_)}

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        texts = [bytes(text).decode(errors="replace") for text in inputs[names.TEXTS].reshape(-1)]
        return _arrays([names.TEXT], [self.network.encode_text(texts)]) if texts else {}


class DecoderModel(NetworkModel):
    @torch.inference_mode()
    def example(self) -> dict[str, np.ndarray]:
        side = self.network.image_size
        features = self.network.encode_image(torch.zeros(1, 3, side, side, device=self.device))
        return _arrays(names.FEATURES[: len(features)], features) | {
            names.POINT_COORDS: np.full((1, 1, 2), side / 2, np.float32),
            names.POINT_LABELS: np.ones((1, 1), np.int64),
        }

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        features = tuple(self.given(inputs, names.FEATURES).values())
        answer = self.network.predict_masks(features, **self.given(inputs, names.PROMPTS))
        return _arrays(names.PREDICTIONS, (answer.low_res_masks, answer.iou_predictions, answer.semantic_embeddings))


def _arrays(keys: Sequence[str], tensors: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.cpu().numpy() for key, tensor in zip(keys, tensors, strict=True)}
