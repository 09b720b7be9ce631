"""The segmenter contract where every network is called by name: its frame and files here, its products elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from imis_net.adapters.array_decoder import ArrayDecoder, by_name
from imis_net.errors import PromptError, UnknownHandleError
from imis_net.networks.imis_net import PIXEL_MEAN, PIXEL_STD
from imis_net.networks.text_encoder import tokenizer
from imis_net.segmenter import TorchSegmenter, answer_rule, model_frame
from imis_net.serving import repository as repo
from imis_net.serving import tensors as names
from imis_net.serving.repository import Manifest

Call = Callable[[str, int, Mapping[str, np.ndarray], Sequence[str]], list[np.ndarray]]
"""Model, version, inputs and names of the wanted outputs -> the outputs, or the model's own error."""


class RemoteNetwork:
    """What ``TorchSegmenter`` asks of an ``IMISNet``, for one version of the decoder."""

    def __init__(self, manifest: Manifest, version: int, call: Call) -> None:
        self.manifest = manifest
        self.version = version
        self._call = call
        self._sent: MutableMapping[Tensor, np.ndarray] = WeakTensorKeyDictionary()
        self.predict_masks = ArrayDecoder(self._decode).predict_masks
        self.image_size = manifest.image_size
        self.known_texts = manifest.known_texts
        self._tokenize = tokenizer(manifest.known_texts)
        self.pixel_mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
        self.pixel_std = torch.tensor(PIXEL_STD).view(3, 1, 1)

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        wanted = names.FEATURES[: len(self.manifest.feature_shapes)]
        return tuple(map(torch.from_numpy, self._call(repo.ENCODER, 1, {names.IMAGES: images.numpy()}, wanted)))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        if self.known_texts == ():
            raise PromptError("this network takes no text")
        tokens = self._tokenize(texts).reshape(len(texts), -1)
        (embedded,) = self._call(repo.TEXT, self.version, {names.TOKENS: tokens.numpy()}, [names.TEXT])
        return torch.from_numpy(embedded)

    def _decode(self, features: Sequence[Tensor], prompts: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Features go to the decoder once, under a key of their own, and again where it no longer keeps them."""
        key = self._sent.get(features[0])
        if key is not None:
            with suppress(UnknownHandleError):
                return self._call(repo.DECODER, self.version, {names.FEATURES_KEY: key, **prompts}, names.PREDICTIONS)
        key = np.frombuffer(uuid.uuid4().bytes, np.int64)
        inputs = {names.FEATURES_KEY: key, **by_name(features), **prompts}
        answers = self._call(repo.DECODER, self.version, inputs, names.PREDICTIONS)
        self._sent[features[0]] = key
        return answers


class RemoteSegmenter(TorchSegmenter):
    """Immutable: a new version of the weights is another object, so that no answer mixes two."""

    def __init__(self, manifest: Manifest, version: int, call: Call) -> None:
        self.network = RemoteNetwork(manifest, version, call)  # type: ignore[assignment]
        self.image_encoder = self.network.encode_image
        self.device = torch.device("cpu")
        self.frame = model_frame(manifest.name, manifest.image_size)
        self.rule = answer_rule(manifest.name)
        self.encoder_digest = manifest.encoder_digest
        self.weights_digest = manifest.weights_digest


class CurrentVersion:
    """The newest version that is loaded whole: asked for at each request, it changes between two of them."""

    def __init__(self, repository: Path, call: Call, is_ready: Callable[[str, int], bool]) -> None:
        self._repository = repository
        self._call = call
        self._is_ready = is_ready
        self._version = 0
        self._segmenter: RemoteSegmenter | None = None
        self._encoder_digest = Manifest.read(repository / repo.ENCODER / "1").encoder_digest

    def __call__(self) -> RemoteSegmenter:
        """Raises:
        ServingError: no version is there whole.
        """
        there = repo.versions(self._repository)
        for version in there:
            if self._segmenter is not None and version == self._version:
                return self._segmenter
            if self._fits(version):
                manifest = Manifest.read(self._repository / repo.DECODER / str(version))
                self._version, self._segmenter = version, RemoteSegmenter(manifest, version, self._call)
                return self._segmenter
        raise repo.ServingError(f"no version of {repo.DECODER} is loaded; there are {there}")

    def _fits(self, version: int) -> bool:
        manifest = Manifest.read(self._repository / repo.DECODER / str(version))
        is_same_encoder = manifest.encoder_digest == self._encoder_digest
        return is_same_encoder and all(self._is_ready(model, version) for model in repo.RELOADED)
