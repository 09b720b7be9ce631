"""Requests to a model of a Triton server: deadlines, bounded retries, shared memory, errors by their kind."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from imis_net.adapters.shared_image import SharedImage
from imis_net.errors import PromptError, ServingError, UnknownHandleError
from imis_net.serving import wire

MAX_ATTEMPTS = 3
BACKOFF_S = 0.05
RECONNECT = [
    # gRPC's own defaults wait up to two minutes before they look for a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
UNREACHABLE = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
LOOPBACKS = ("127.0.0.1", "localhost", "[::1]")


class TritonConnection:
    """Safe to call from several threads: each has its own channel, as tritonclient asks."""

    def __init__(self, url: str, use_shared_memory: bool, model: str = wire.MODEL, priority: int = 0) -> None:
        """``priority``: the model's own level for these requests, 1 being served first; 0 is its default."""
        self.url = url
        self._model, self._priority = model, priority
        self._shares_memory = use_shared_memory and url.rsplit(":", 1)[0] in LOOPBACKS
        self._local = threading.local()

    def infer(self, tensors: wire.Tensors, outputs: Sequence[str], give_up_at: float) -> dict[str, np.ndarray]:
        """One request, repeated while the server cannot be reached, until ``give_up_at`` (``time.monotonic``).

        Raises:
            PromptError: the server refuses the prompt or image, in its words.
            UnknownHandleError: it needs the image.
            ServingError: it cannot be reached, is full, too slow, or failed.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self._infer_once(tensors, outputs, give_up_at - time.monotonic())
            except InferenceServerException as error:
                is_last = attempt == MAX_ATTEMPTS - 1 or time.monotonic() + BACKOFF_S > give_up_at
                if error.status() != "StatusCode.UNAVAILABLE" or is_last:
                    raise self._translated(error) from error
            time.sleep(BACKOFF_S * 2**attempt)
        raise AssertionError("unreachable")

    def _infer_once(self, tensors: wire.Tensors, outputs: Sequence[str], timeout_s: float) -> dict[str, np.ndarray]:
        if timeout_s <= 0:
            raise InferenceServerException("no time left", status="StatusCode.DEADLINE_EXCEEDED")
        with ExitStack() as stack:
            inputs = [self._input(name, tensor, timeout_s, stack) for name, tensor in tensors.items()]
            wanted = [InferRequestedOutput(name) for name in outputs]
            answer = self._client.infer(
                self._model, inputs, outputs=wanted, client_timeout=timeout_s, priority=self._priority
            )
            arrays = {name: answer.as_numpy(name) for name in outputs}
        return {name: array for name, array in arrays.items() if array is not None}

    def _input(self, name: str, tensor: np.ndarray, timeout_s: float, stack: ExitStack) -> InferInput:
        given = InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
        if name == wire.IMAGE and self._shares_memory:
            try:
                shared = stack.enter_context(SharedImage(self._client, tensor, timeout_s))
                given.set_shared_memory(shared.name, tensor.nbytes)
                return given
            except InferenceServerException as error:
                if error.status() in UNREACHABLE:
                    raise
                self._shares_memory = False  # another container, another /dev/shm
        given.set_data_from_numpy(tensor)
        return given

    @property
    def _client(self) -> InferenceServerClient:
        if not hasattr(self._local, "client"):
            self._local.client = InferenceServerClient(self.url, channel_args=RECONNECT)
        client: InferenceServerClient = self._local.client
        return client

    def _translated(self, error: InferenceServerException) -> Exception:
        status, message = error.status(), error.message() or "no reason given"
        if status == "StatusCode.NOT_FOUND" and message.startswith(wire.UNKNOWN_HANDLE):
            return UnknownHandleError(message)
        # Triton's own refusals begin with the request's id: they speak of a model that is not ours.
        if status == "StatusCode.INVALID_ARGUMENT" and not message.startswith("[request id"):
            return PromptError(message)
        kind = (status or "error").removeprefix("StatusCode.").lower().replace("_", " ")
        return ServingError(f"Triton at {self.url}: {kind} ({message[:200]})")
