"""The network's graphs in this process: the same masks as torch's, sooner."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from imis_net import export
from imis_net.adapters.array_decoder import ArrayDecoder, as_array, by_name
from imis_net.adapters.graph_runtimes import Build, decoder_name, decoder_names, open_graph
from imis_net.networks.imis_net import IMISNet
from imis_net.segmenter import TorchSegmenter
from imis_net.serving.tensors import LOW_RES_MASKS, TEXT

DEFAULT_BUILD = Build()


class GraphEncoder:
    """A network's image encoder on its graphs."""

    def __init__(self, folder: Path, build: Build, threads: int = 0) -> None:
        self._trunk, self._neck = (open_graph(folder, name, build, threads) for name in (export.TRUNK, export.NECK))

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        (name,) = self._trunk.input_names
        maps = self._trunk.run({name: as_array(images)})
        return tuple(map(torch.from_numpy, self._neck.run(dict(zip(self._neck.input_names, maps, strict=True)))))


class GraphDecoder(ArrayDecoder):
    """The decoder for what the prompts have."""

    def __init__(self, folder: Path, build: Build, has_text: bool, threads: int = 0) -> None:
        decoders = {name: open_graph(folder, name, build, threads) for name in decoder_names(has_text)}
        super().__init__(
            lambda features, prompts: decoders[decoder_name(TEXT in prompts, LOW_RES_MASKS in prompts)].run(
                by_name(features) | prompts
            )
        )


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
        self.image_encoder = GraphEncoder(folder, build, threads)
        self.network = GraphNetwork(local.network, folder, build, threads)  # type: ignore[assignment]
        self.device = torch.device("cpu")
        self.frame, self.rule = local.frame, local.rule
        self.encoder_digest, self.weights_digest = local.encoder_digest, local.weights_digest
