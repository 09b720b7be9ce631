"""An image handed to a Triton server of the same host without a copy through its socket."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType
from uuid import uuid4

import numpy as np
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

UNREGISTER_TIMEOUT_S = 0.2


class SharedImage:
    """A region of its own for one request, gone when the request was answered; never used twice, so that a late
    reader cannot see another image."""

    def __init__(self, client: InferenceServerClient, image: np.ndarray, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.name = f"imis_{os.getpid()}_{uuid4().hex}"
        self._client = client
        self._image = np.ascontiguousarray(image)

    def __enter__(self) -> SharedImage:
        size = self._image.nbytes
        self._region = shm.create_shared_memory_region(self.name, f"/{self.name}", size)
        try:
            shm.set_shared_memory_region(self._region, [self._image])
            self._client.register_system_shared_memory(self.name, f"/{self.name}", size, client_timeout=self.timeout_s)
        except BaseException:
            shm.destroy_shared_memory_region(self._region)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After a missed deadline the server may still be reading: then it keeps its view until it ends.
        if not (isinstance(error, InferenceServerException) and error.status() == "StatusCode.DEADLINE_EXCEEDED"):
            with suppress(InferenceServerException):  # it died; so did its view
                self._client.unregister_system_shared_memory(self.name, client_timeout=UNREGISTER_TIMEOUT_S)
        shm.destroy_shared_memory_region(self._region)
