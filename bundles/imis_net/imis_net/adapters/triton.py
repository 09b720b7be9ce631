"""A segmenter whose networks run on a Triton server; its embeddings are handles to what the server keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from imis_net.adapters.circuit_breaker import CircuitBreaker
from imis_net.adapters.triton_connection import TritonConnection
from imis_net.embedding_cache import EmbeddingCache
from imis_net.errors import ImageError, PromptError, ServingError, UnknownHandleError
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import Segmenter
from imis_net.serving import wire
from imis_net.transforms import Frame

log = logging.getLogger(__name__)

MAX_FAILURES = 3
COOLDOWN_S = 2.0
LOCAL_CACHE_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class RemoteEmbedding(ImageEmbedding):
    """An embedding that stays on the server: no features, a handle to them, and the image, to make them anew.

    Attributes:
        handle: names the image by its content.
        image: uint8 RGB [H, W, 3].
    """

    handle: str
    image: np.ndarray

    @property
    def num_bytes(self) -> int:
        return self.image.nbytes


class TritonSegmenter:
    """The segmenter contract over gRPC. Safe to call from several threads.

    Every answer is checked (handle, encoder, shapes, types, finite numbers) and comes within ``deadline_s``, or else
    the local segmenter answers; without one, a ``ServingError`` does.
    """

    def __init__(
        self, url: str, fallback: Segmenter | None = None, deadline_s: float = 2.0, use_shared_memory: bool = True
    ) -> None:
        """Ask the server what it serves.

        Raises:
            ServingError: it does not answer, and there is no ``fallback``.
        """
        self.url = url
        self.fallback = fallback
        self.deadline_s = deadline_s
        self._connection = TritonConnection(url, use_shared_memory)
        self._breaker = CircuitBreaker(MAX_FAILURES, COOLDOWN_S)
        self._local_embeddings = EmbeddingCache(LOCAL_CACHE_BYTES)
        self._info: Mapping[str, object] = {}
        try:
            self._ask("", {}, self._give_up_at())
        except ServingError:
            if fallback is None:
                raise

    @property
    def frame(self) -> Frame:
        if self.fallback:
            return self.fallback.frame
        facts = self._info["frame"]
        assert isinstance(facts, dict)
        return Frame(**facts)

    @property
    def encoder_digest(self) -> str:
        return self.fallback.encoder_digest if self.fallback else str(self._info["encoder_digest"])

    @property
    def weights_digest(self) -> str:
        """Of what answers now; the server's may be exchanged at any time."""
        if self.fallback and not self._is_remote:
            return self.fallback.weights_digest
        return str(self._info["weights_digest"])

    @property
    def known_texts(self) -> tuple[str, ...] | None:
        if self.fallback:
            return self.fallback.known_texts
        names = self._info["known_texts"]
        return tuple(names) if isinstance(names, list) else None

    @property
    def _is_remote(self) -> bool:
        return bool(self._info) and not self._breaker.is_open

    def status(self) -> dict[str, object]:
        """Which of the two answers, for whoever watches the server."""
        in_use = "triton" if self._is_remote else "local" if self.fallback else "none"
        return {"segmenter": "triton", "url": self.url, "in_use": in_use, "reason": self._breaker.reason}

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        return self._encode(image, {})

    def prefetch(self, image: np.ndarray) -> ImageEmbedding:
        """As ``encode_image``, after the images that somebody waits for."""
        return self._encode(image, {wire.PREFETCH: np.array([True])})

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        return self.predict_batch(embedding, [prompt])[0]

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        if not isinstance(embedding, RemoteEmbedding):
            raise PromptError("image embedding was made by another encoder; encode the image again")
        for prompt in prompts:
            prompt.check_inside(*embedding.original_size)
        predictions: dict[int, Prediction] = {}
        try:
            give_up_at = self._give_up_at()
            for members in wire.alike(prompts):
                answers = self._predict_alike(embedding, [prompts[i] for i in members], give_up_at)
                predictions.update(zip(members, answers, strict=True))
        except ServingError:
            if self.fallback is None:
                raise
            return self.fallback.predict_batch(self._local(embedding), prompts)
        return [predictions[i] for i in range(len(prompts))]

    def _encode(self, image: np.ndarray, more: wire.Tensors) -> RemoteEmbedding:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        size = (image.shape[0], image.shape[1])
        embedding = RemoteEmbedding((), size, self.encoder_digest, wire.image_handle(image), image)
        try:
            self._ask(embedding.handle, {wire.IMAGE: image, **more}, self._give_up_at())
        except ServingError:
            if self.fallback is None:
                raise
            self._local(embedding)
        return embedding

    def _predict_alike(
        self, embedding: RemoteEmbedding, prompts: Sequence[Prompt], give_up_at: float
    ) -> list[Prediction]:
        tensors = wire.from_prompts(prompts)

        def read(answer: wire.Tensors) -> list[Prediction]:
            return wire.to_predictions(answer, len(prompts), embedding.original_size, self.frame.side)

        try:
            return self._ask(embedding.handle, tensors, give_up_at, wire.ANSWERS, read)
        except UnknownHandleError:  # it was started anew, or made room for others
            tensors[wire.IMAGE] = embedding.image
            return self._ask(embedding.handle, tensors, give_up_at, wire.ANSWERS, read)

    def _ask(
        self,
        handle: str,
        tensors: wire.Tensors,
        give_up_at: float,
        outputs: Sequence[str] = (),
        read: Callable[[wire.Tensors], list[Prediction]] = lambda answer: [],
    ) -> list[Prediction]:
        """One request, whose answer is known to be about this image, from the expected encoder, and readable."""
        if not self._breaker.allows():
            raise ServingError(f"Triton at {self.url} is given a pause: {self._breaker.reason}")
        with self._counted():
            request = {wire.HANDLE: wire.as_bytes([handle]), **tensors}
            answer = self._connection.infer(request, [*outputs, wire.INFO], give_up_at)
            info = wire.to_info(answer.get(wire.INFO))
            self._check(info, handle)
            predictions = read(answer)
            self._info = info
            return predictions

    def _check(self, info: Mapping[str, object], handle: str) -> None:
        if str(info.get("handle", "")) != handle:
            raise ServingError(f"Triton at {self.url} answered about another image")
        if self.fallback is None:
            return
        facts = {"encoder_digest": self.fallback.encoder_digest, "frame": asdict(self.fallback.frame)}
        for key, expected in facts.items():
            got = info.get(key)
            if got != expected:
                raise ServingError(f"Triton at {self.url} serves another model: {key} {got}, expected {expected}")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """The breaker counts what the server does wrong, not what callers do."""
        try:
            yield
        except (UnknownHandleError, PromptError):
            self._breaker.succeeded()  # it is there, and says so
            raise
        except ServingError as error:
            self._breaker.failed(str(error))
            log.warning("%s", error)
            raise
        self._breaker.succeeded()

    def _give_up_at(self) -> float:
        return time.monotonic() + self.deadline_s

    def _local(self, embedding: RemoteEmbedding) -> ImageEmbedding:
        fallback = self.fallback
        assert fallback is not None
        local, _ = self._local_embeddings.get_or_encode(
            embedding.handle, lambda: fallback.encode_image(embedding.image)
        )
        return local
