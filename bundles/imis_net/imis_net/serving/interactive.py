"""The interactive Triton model without Triton: a handle or an image and prompts in, masks out, embeddings stay here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from imis_net.embedding_cache import EmbeddingCache
from imis_net.errors import PromptError, UnknownHandleError
from imis_net.prompts import ImageEmbedding
from imis_net.segmenter import Segmenter
from imis_net.serving import wire
from imis_net.serving.priority_gate import PriorityGate


class InteractiveModel:
    """Thread safe. Embeddings are bounded in bytes; equal images are encoded once, whoever sends them."""

    def __init__(self, current: Callable[[], Segmenter], cache_bytes: int, encoder_runs: int = 1) -> None:
        """
        Args:
            current: the segmenter to answer with; asked once for each request, which it answers as a whole.
            cache_bytes: bound of the embeddings.
            encoder_runs: how many images may be in the encoder at a time; more only help where it batches them.
        """
        self._current = current
        self._embeddings = EmbeddingCache(cache_bytes)
        self._encoder = PriorityGate(encoder_runs)  # bounds memory; a prefetch waits for clicks

    def answer(self, tensors: wire.Tensors) -> dict[str, np.ndarray]:
        """One request's tensors -> its answer's. A request without prompts only encodes; without a handle it asks
        for the ``info`` alone.

        Raises:
            UnknownHandleError: the image has to be sent, again or for the first time.
            PromptError, ImageError: what was sent cannot be used.
        """
        handle = wire.as_text(tensors[wire.HANDLE])
        prompts = wire.to_prompts(tensors)
        segmenter = self._current()
        if not handle:
            if prompts or wire.IMAGE in tensors:
                raise PromptError("handle: expected the image's name, got an empty one")
            return {wire.INFO: wire.from_info(describe(segmenter))}
        embedding, is_hit = self._embedding(segmenter, handle, tensors.get(wire.IMAGE), _is_prefetch(tensors))
        predictions = segmenter.predict_batch(embedding, prompts) if prompts else []
        answer = wire.from_predictions(predictions) if predictions else {}
        return answer | {wire.INFO: wire.from_info(describe(segmenter) | {"handle": handle, "cache_hit": is_hit})}

    def _embedding(
        self, segmenter: Segmenter, handle: str, image: np.ndarray | None, is_prefetch: bool
    ) -> tuple[ImageEmbedding, bool]:
        key = f"{handle}-{segmenter.encoder_digest}"
        if image is None:
            kept = self._embeddings.get(key)
            if kept is None:
                raise UnknownHandleError(f"{wire.UNKNOWN_HANDLE}: got {handle[:40]!r}; send the image with it")
            return kept, True
        if wire.image_handle(image) != handle:
            raise PromptError(f"handle: {handle[:40]!r} is not the name of the image that came with it")

        def encode() -> ImageEmbedding:
            with self._encoder.turn(urgent=not is_prefetch):
                return segmenter.encode_image(image)

        return self._embeddings.get_or_encode(key, encode)


def describe(segmenter: Segmenter) -> dict[str, object]:
    """What a client must know: the model frame, the names it understands, and whose weights answer."""
    return {
        "frame": asdict(segmenter.frame),
        "known_texts": segmenter.known_texts,
        "encoder_digest": segmenter.encoder_digest,
        "weights_digest": segmenter.weights_digest,
    }


def _is_prefetch(tensors: wire.Tensors) -> bool:
    return wire.PREFETCH in tensors and bool(tensors[wire.PREFETCH].any())
