"""An image's features where they are decoded: they come once, and the clicks that follow bring their key alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from imis_net.errors import UnknownHandleError

UNKNOWN_FEATURES = "unknown features: send them with their key"
"""How a decoder's refusal is known: from one model to another, this Triton passes words on and loses error codes."""
Features = dict[str, np.ndarray]


class KeptFeatures:
    """Thread safe; bounded in bytes, least recently used goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Features] = OrderedDict()
        self._num_bytes = 0

    def keep(self, key: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """Copies, since what a request brought is gone after it."""
        copies = {name: array.copy() for name, array in features.items()}
        with self._lock:
            self._num_bytes += _num_bytes(copies) - _num_bytes(self._kept.pop(key.tobytes(), {}))
            self._kept[key.tobytes()] = copies
            while self._num_bytes > self.max_bytes:
                self._num_bytes -= _num_bytes(self._kept.popitem(last=False)[1])

    def features(self, key: np.ndarray) -> Features:
        """Raises:
        UnknownHandleError: not kept, or no longer.
        """
        with self._lock:
            if key.tobytes() not in self._kept:
                raise UnknownHandleError(UNKNOWN_FEATURES)
            self._kept.move_to_end(key.tobytes())
            return self._kept[key.tobytes()]


def _num_bytes(features: Features) -> int:
    return sum(array.nbytes for array in features.values())
