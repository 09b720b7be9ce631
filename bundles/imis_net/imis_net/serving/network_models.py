"""The networks behind the interactive model, each run from a version's folder: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from imis_net.adapters.graphs import GraphDecoder, GraphEncoder
from imis_net.checkpoint import load_weights
from imis_net.errors import ServingError
from imis_net.networks.build import BUILDERS
from imis_net.networks.imis_net import IMISNet
from imis_net.serving import tensors as names
from imis_net.serving.repository import GRAPHS, TORCH, WEIGHTS, Manifest

Arrays = Mapping[str, np.ndarray]


class Encoder(Protocol):
    """The halves of an ``ImageEncoder``, whatever runs them."""

    def trunk_features(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]: ...

    def from_trunk(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]: ...


class NetworkModel:
    """One of the three networks; ``run`` is safe to call from several threads."""

    def __init__(self, folder: Path) -> None:
        """Load a version and run it once, so that the first user does not pay for what is set up lazily.

        Raises:
            ServingError: no whole version there, or one whose answers are not finite.
            CheckpointError: weights that do not fit.
            ExportError: graphs or engines that cannot be loaded here.
        """
        self.manifest = Manifest.read(folder)
        self.device = torch.device("cpu")  # where graphs take their inputs from, wherever they run
        self.open(folder)
        for name, array in self.run(self.example()).items():
            if not np.isfinite(array).all():
                raise ServingError(f"{folder.parent.name}/{folder.name}: {name} is not finite")

    def open(self, folder: Path) -> None:
        raise NotImplementedError

    def example(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def load_network(self, folder: Path) -> IMISNet:
        """The torch network with the version's weights, on the GPU if there is one."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network: IMISNet = BUILDERS[self.manifest.name](**self.manifest.architecture).eval()
        load_weights(network, folder / WEIGHTS)
        return network.to(self.device)

    def given(self, inputs: Arrays, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
        """Those of the wanted inputs that are there."""
        return {name: torch.from_numpy(inputs[name]).to(self.device) for name in wanted if name in inputs}


class EncoderModel(NetworkModel):
    """Gives what the decoder reads; to whoever trains on a frozen trunk, that trunk's maps."""

    def open(self, folder: Path) -> None:
        is_torch = self.manifest.backend == TORCH
        self.encoder: Encoder = (
            self.load_network(folder).image_encoder if is_torch else GraphEncoder(folder / GRAPHS, self.manifest.build)
        )

    def example(self) -> dict[str, np.ndarray]:
        side = self.manifest.image_size
        return {names.IMAGES: np.zeros((1, 3, side, side), np.float32)}

    @torch.inference_mode()
    def run(self, inputs: Arrays, wanted: Collection[str] = names.FEATURES) -> dict[str, np.ndarray]:
        """``wanted``: names of outputs; what nobody wants is not computed."""
        maps = self.encoder.trunk_features(self.given(inputs, [names.IMAGES])[names.IMAGES])
        outputs: dict[str, np.ndarray] = {}
        if not set(names.FEATURES).isdisjoint(wanted):
            features = self.encoder.from_trunk(maps)
            outputs |= _arrays(names.FEATURES[: len(features)], features)
        if not set(names.TRUNK).isdisjoint(wanted):
            outputs |= _arrays(names.TRUNK[: len(maps)], maps)
            outputs[names.TRUNK_DIGEST] = np.full((len(maps[0]), 1), self.manifest.trunk_digest.encode(), np.object_)
        return outputs


class TextModel(NetworkModel):
    """Takes the names themselves, since which can be known is a fact of the weights."""

    def open(self, folder: Path) -> None:
        self.network = self.load_network(folder)

    def example(self) -> dict[str, np.ndarray]:
        known = self.network.known_texts
        return {names.TEXTS: np.array([b"liver"] if known is None else [n.encode() for n in known[:1]], np.object_)}

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        texts = [bytes(text).decode(errors="replace") for text in inputs[names.TEXTS].reshape(-1)]
        return _arrays([names.TEXT], [self.network.encode_text(texts)]) if texts else {}


class DecoderModel(NetworkModel):
    def open(self, folder: Path) -> None:
        if self.manifest.backend == TORCH:
            self.predict_masks = self.load_network(folder).predict_masks
        else:
            has_text = self.manifest.known_texts != ()
            self.predict_masks = GraphDecoder(folder / GRAPHS, self.manifest.build, has_text).predict_masks

    def example(self) -> dict[str, np.ndarray]:
        shapes = zip(names.FEATURES, self.manifest.feature_shapes, strict=False)
        return {name: np.zeros(shape, np.float32) for name, shape in shapes} | {
            names.POINT_COORDS: np.full((1, 1, 2), self.manifest.image_size / 2, np.float32),
            names.POINT_LABELS: np.ones((1, 1), np.int64),
        }

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        features = tuple(self.given(inputs, names.FEATURES).values())
        answer = self.predict_masks(features, **self.given(inputs, names.PROMPTS))
        return _arrays(names.PREDICTIONS, (answer.low_res_masks, answer.iou_predictions, answer.semantic_embeddings))


def _arrays(keys: Sequence[str], tensors: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.cpu().numpy() for key, tensor in zip(keys, tensors, strict=True)}
