"""The network's graphs in this process: the same masks as torch's, sooner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imis_net import export
from imis_net.adapters.graph_runtimes import Build, Graph, decoder_name, decoder_names, open_graph
from imis_net.networks.imis_net import IMISNet
from imis_net.networks.mask_decoder import MaskPrediction
from imis_net.networks.prompt_encoder import labelled_points
from imis_net.segmenter import TorchSegmenter
from imis_net.serving.tensors import FEATURES, LOW_RES_MASKS, POINT_COORDS, POINT_LABELS, TEXT

DEFAULT_BUILD = Build()


class GraphEncoder:
    """``IMISNet.encode_image`` on its graphs."""

    def __init__(self, folder: Path, build: Build, threads: int = 0) -> None:
        self._trunk, self._neck = (open_graph(folder, name, build, threads) for name in (export.TRUNK, export.NECK))

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.from_trunk(self.trunk_features(images))

    def trunk_features(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._run(self._trunk, [images])

    def from_trunk(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self._run(self._neck, maps)

    def _run(self, graph: Graph, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arrays = [_array(tensor) for tensor in tensors]
        return tuple(map(torch.from_numpy, graph.run(dict(zip(graph.input_names, arrays, strict=True)))))


class GraphDecoder:
    """``IMISNet.predict_masks`` on its graphs."""

    def __init__(self, folder: Path, build: Build, has_text: bool, threads: int = 0) -> None:
        self._decoders = {name: open_graph(folder, name, build, threads) for name in decoder_names(has_text)}

    def predict_masks(
        self,
        features: tuple[Tensor, ...],
        point_coords: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        text: Tensor | None = None,
        low_res_masks: Tensor | None = None,
    ) -> MaskPrediction:
        coords, labels = labelled_points(point_coords, point_labels, boxes, text, low_res_masks)
        inputs = {**dict(zip(FEATURES, features, strict=False)), POINT_COORDS: coords, POINT_LABELS: labels}
        if text is not None:
            inputs[TEXT] = text
        if low_res_masks is not None:
            inputs[LOW_RES_MASKS] = low_res_masks
        decoder = self._decoders[decoder_name(text is not None, low_res_masks is not None)]
        answers = decoder.run({name: _array(value) for name, value in inputs.items()})
        masks, ious, semantic = map(torch.from_numpy, answers)
        return MaskPrediction(masks, ious, semantic, tokens=masks[:0], src=masks[:0])


class GraphNetwork:
    """What ``TorchSegmenter`` asks of an ``IMISNet``; names are embedded by torch, once each and of little cost."""

    def __init__(self, network: IMISNet, folder: Path, build: Build, threads: int = 0) -> None:
        """
        Args:
            folder: what ``export.export`` wrote of this network, or engines made from that.

        Raises:
            ExportError: a graph is missing or cannot be loaded.
        """
        self.name, self.image_size, self.known_texts = network.name, network.image_size, network.known_texts
        self.pixel_mean, self.pixel_std = network.pixel_mean, network.pixel_std
        self.encode_text = network.encode_text
        self.encode_image = GraphEncoder(folder, build, threads).encode_image
        self.predict_masks = GraphDecoder(folder, build, network.known_texts != (), threads).predict_masks


class GraphSegmenter(TorchSegmenter):
    """The segmenter contract on ``GraphNetwork``. Embeddings are interchangeable with torch's of the same weights."""

    def __init__(self, local: TorchSegmenter, folder: Path, build: Build = DEFAULT_BUILD, threads: int = 0) -> None:
        """Graphs that are not in ``folder`` are exported, and kept only where they agree with torch.

        Raises:
            ExportError: they do not, or a graph is missing or cannot be loaded.
        """
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            export.export(local.network, folder)
        self.build = build
        self.network = GraphNetwork(local.network, folder, build, threads)  # type: ignore[assignment]
        self.device = torch.device("cpu")
        self.resize_mode, self.rule = local.resize_mode, local.rule
        self.encoder_digest, self.weights_digest = local.encoder_digest, local.weights_digest


def _array(value: Tensor | np.ndarray) -> np.ndarray:
    return value.contiguous().numpy() if isinstance(value, Tensor) else value
