"""The networks behind the interactive model, each run from a version's folder: arrays in, arrays out.

Where graphs run them nothing here imports torch, so that new weights are loaded in a second beside those that serve.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from imis_net.adapters.graph_runtimes import (
    NECK,
    TEXT_ENCODER,
    TRUNK,
    Build,
    Graph,
    decoder_name,
    decoder_names,
    open_graph,
)
from imis_net.errors import ServingError
from imis_net.serving import tensors as names
from imis_net.serving.kept_features import KeptFeatures
from imis_net.serving.manifest import GRAPHS, TORCH, WEIGHTS, Manifest

KEPT_FEATURES_BYTES = 256 << 20
"""Of a decoder's process: 20 images of ViT-B at 1024 px, 80 of the compact default."""
Arrays = Mapping[str, np.ndarray]
Open = Callable[[str], Graph]
"""A part of the network by its graph's name."""


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
        self.open(_opener(folder, self.manifest))
        for name, array in self.run(self.example()).items():
            if not np.isfinite(array).all():
                raise ServingError(f"{folder.parent.name}/{folder.name}: {name} is not finite")

    def open(self, part: Open) -> None:
        raise NotImplementedError

    def example(self) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        raise NotImplementedError


class EncoderModel(NetworkModel):
    """Gives what the decoder reads; to whoever trains on a frozen trunk, that trunk's maps."""

    def open(self, part: Open) -> None:
        self._trunk, self._neck = part(TRUNK), part(NECK)

    def example(self) -> dict[str, np.ndarray]:
        side = self.manifest.image_size
        return {names.IMAGES: np.zeros((1, 3, side, side), np.float32)}

    def run(self, inputs: Arrays, wanted: Collection[str] = names.FEATURES) -> dict[str, np.ndarray]:
        """``wanted``: names of outputs; what nobody wants is not computed."""
        maps = self._trunk.run({names.IMAGES: inputs[names.IMAGES]})
        outputs: dict[str, np.ndarray] = {}
        if not set(names.FEATURES).isdisjoint(wanted):
            features = self._neck.run(dict(zip(self._neck.input_names, maps, strict=True)))
            outputs |= _named(names.FEATURES[: len(features)], features)
        if not set(names.TRUNK).isdisjoint(wanted):
            outputs |= _named(names.TRUNK[: len(maps)], maps)
            outputs[names.TRUNK_DIGEST] = np.full((len(maps[0]), 1), self.manifest.trunk_digest.encode(), np.object_)
        return outputs


class TextModel(NetworkModel):
    """Takes tokens; of a network that takes no text, none."""

    def open(self, part: Open) -> None:
        self._encoder = None if self.manifest.known_texts == () else part(TEXT_ENCODER)

    def example(self) -> dict[str, np.ndarray]:
        num_tokens = 77 if self.manifest.known_texts is None else 1
        return {names.TOKENS: np.zeros((1, num_tokens), np.int64)}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        if self._encoder is None:
            return {}
        tokens = inputs[names.TOKENS]
        rows = tokens if self.manifest.known_texts is None else tokens[:, 0]
        return _named([names.TEXT], self._encoder.run({names.TOKENS: rows}))


class DecoderModel(NetworkModel):
    """Keeps the features that come with a key; with that key alone they need not come again."""

    def open(self, part: Open) -> None:
        self._kept = KeptFeatures(KEPT_FEATURES_BYTES)
        self._decoders = {name: part(name) for name in decoder_names(self.manifest.known_texts != ())}

    def example(self) -> dict[str, np.ndarray]:
        shapes = zip(names.FEATURES, self.manifest.feature_shapes, strict=False)
        return {name: np.zeros(shape, np.float32) for name, shape in shapes} | {
            names.POINT_COORDS: np.full((1, 1, 2), self.manifest.image_size / 2, np.float32),
            names.POINT_LABELS: np.ones((1, 1), np.int64),
        }

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """
        Raises:
            UnknownHandleError: a key without features that are not kept; they have to be sent.
        """
        given = dict(inputs)
        key = given.pop(names.FEATURES_KEY, None)
        if key is not None:
            features = {name: given[name] for name in names.FEATURES if name in given}
            if features:
                self._kept.keep(key, features)
            else:
                given |= self._kept.features(key)
        decoder = self._decoders[decoder_name(names.TEXT in given, names.LOW_RES_MASKS in given)]
        return _named(names.PREDICTIONS, decoder.run(given))


def _opener(folder: Path, manifest: Manifest) -> Open:
    if manifest.backend == TORCH:
        from imis_net.serving.torch_parts import TorchParts

        return TorchParts(folder / WEIGHTS, manifest).part

    def part(name: str) -> Graph:
        # Names are embedded by their own graph in float32 whatever runs the rest: once each, and of little cost.
        return open_graph(folder / GRAPHS, name, Build() if name == TEXT_ENCODER else manifest.build)

    return part


def _named(keys: Sequence[str], arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(keys, arrays, strict=True))
