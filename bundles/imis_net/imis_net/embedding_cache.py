"""Image embeddings by key: bounded in bytes, least recently used goes first, one encoder run per key at a time.

Memory is a window onto the disk, where there is one: what was pushed out or made by an earlier server is read again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.prompts import ImageEmbedding


class EmbeddingCache:
    """Thread safe. Keys must name image, slice, intensity mapping and encoder weights; the caller makes them."""

    def __init__(self, max_bytes: int, disk: EmbeddingDisk | None = None) -> None:
        self.max_bytes = max_bytes
        self.disk = disk
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, ImageEmbedding] = OrderedDict()
        self._in_flight: dict[str, Future[ImageEmbedding]] = {}
        self._num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self.num_evictions = 0
        self.num_disk_hits = 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get_or_encode(
        self, key: str, encode: Callable[[], ImageEmbedding], is_stored: bool = True
    ) -> tuple[ImageEmbedding, bool]:
        """The embedding, and whether this call was spared the encoder.

        Callers that ask for a key while another one encodes it wait for that run; its error reaches them all, and
        the next call tries again. ``is_stored`` False keeps it from the disk, for images that leave no trace.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                self.num_hits += 1
                return self._entries[key], True
            future = self._in_flight.get(key)
            if future is not None:
                self.num_hits += 1
            else:
                self.num_misses += 1
                mine: Future[ImageEmbedding] = Future()
                self._in_flight[key] = mine
        if future is not None:
            return future.result(), True
        return self._fill(key, encode, mine, self.disk if is_stored else None)

    def get(self, key: str) -> ImageEmbedding | None:
        """What is kept or just being made, which is waited for; None where an image is needed to go on."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                self.num_hits += 1
                return self._entries[key]
            future = self._in_flight.get(key)
        return None if future is None else future.result()

    def _fill(
        self, key: str, encode: Callable[[], ImageEmbedding], future: Future[ImageEmbedding], disk: EmbeddingDisk | None
    ) -> tuple[ImageEmbedding, bool]:
        try:
            stored = disk.read(key) if disk else None
            embedding = stored or encode()
        except BaseException as error:
            with self._lock:
                del self._in_flight[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._in_flight[key]
            self._put(key, embedding)
            self.num_disk_hits += stored is not None
        future.set_result(embedding)
        if disk and stored is None:
            disk.write(key, embedding)
        return embedding, stored is not None

    def _put(self, key: str, embedding: ImageEmbedding) -> None:
        if embedding.num_bytes > self.max_bytes:
            return  # larger than the whole cache: of use to this call only
        self._entries[key] = embedding
        self._num_bytes += embedding.num_bytes
        while self._num_bytes > self.max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self._num_bytes -= evicted.num_bytes
            self.num_evictions += 1
