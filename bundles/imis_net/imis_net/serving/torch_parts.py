"""The parts of a torch network as graphs: arrays by name in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imis_net.adapters.graph_runtimes import NECK, TEXT_ENCODER, TRUNK, Graph
from imis_net.checkpoint import load_weights
from imis_net.networks.build import BUILDERS
from imis_net.networks.encoder import ImageEncoder
from imis_net.networks.imis_net import IMISNet
from imis_net.serving import tensors as names
from imis_net.serving.manifest import Manifest

Tensors = Mapping[str, Tensor]


class TorchPart:
    """A ``Graph`` on a GPU if there is one."""

    def __init__(self, device: torch.device, input_names: Sequence[str], run: Callable[[Tensors], Sequence[Tensor]]):
        self.input_names = list(input_names)
        self._device, self._run = device, run

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        given = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
        return [answer.cpu().numpy() for answer in self._run(given)]


class TorchParts:
    def __init__(self, weights: Path, manifest: Manifest) -> None:
        """Raises:
        CheckpointError: weights that do not fit.
        """
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network: IMISNet = BUILDERS[manifest.name](**manifest.architecture).eval()
        load_weights(network, weights)
        self._network = network.to(self._device)

    @cached_property
    def _image_encoder(self) -> ImageEncoder:
        return self._network.image_encoder.for_inference(self._network.image_size)

    def part(self, name: str) -> Graph:
        """``name``: of the graph that it stands for."""
        if name == TRUNK:
            return TorchPart(
                self._device, [names.IMAGES], lambda given: self._image_encoder.trunk_features(given[names.IMAGES])
            )
        if name == NECK:
            maps = names.TRUNK[: self._image_encoder.num_trunk_maps]
            return TorchPart(self._device, maps, lambda given: self._image_encoder.from_trunk([given[m] for m in maps]))
        if name == TEXT_ENCODER:
            return TorchPart(
                self._device, [names.TOKENS], lambda given: [self._network.embed_text(given[names.TOKENS])]
            )
        return TorchPart(self._device, [*names.FEATURES, names.POINT_COORDS, names.POINT_LABELS], self._decode)

    def _decode(self, given: Tensors) -> list[Tensor]:
        features = tuple(given[name] for name in names.FEATURES if name in given)
        coords, labels = given[names.POINT_COORDS], given[names.POINT_LABELS]
        answer = self._network.predict_from_points(
            features, coords, labels, given.get(names.TEXT), given.get(names.LOW_RES_MASKS)
        )
        return [answer.low_res_masks, answer.iou_predictions, answer.semantic_embeddings]
