"""Image embeddings that outlive the server: signed files, bounded in bytes, least recently used goes first.

A file is a keyed BLAKE2b digest over its cache key and its safetensors, then these. What another server wrote, what is
torn or was tampered with does not verify: it is removed and never parsed. The folder is its owner's alone, since an
embedding shows what the image showed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load, save

from imis_net.files import write_atomically
from imis_net.prompts import ImageEmbedding

_SECRET_BYTES = 32
_DIGEST_BYTES = 32
_SUFFIX = ".embedding"


class EmbeddingDisk:
    """Thread safe within one process."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.num_rejected = 0
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._secret = _secret(folder / "secret")
        files = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda f: f.stat().st_mtime_ns)
        self._sizes = OrderedDict((f.name, f.stat().st_size) for f in files)
        for draft in folder.glob(f".*{_SUFFIX}.*"):
            draft.unlink(missing_ok=True)
        self._evict()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def read(self, key: str) -> ImageEmbedding | None:
        """What was written under this key, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        payload = content[_DIGEST_BYTES:]
        if not hmac.compare_digest(content[:_DIGEST_BYTES], self._signature(key, payload)):
            self._drop(path)
            self.num_rejected += 1
            return None
        with self._lock:
            if path.name in self._sizes:
                self._sizes.move_to_end(path.name)
        os.utime(path)  # the order of use survives a restart
        return _unpacked(payload)

    def write(self, key: str, embedding: ImageEmbedding) -> None:
        """Keep it. A disk that is full or broken costs the next server an encoder run, not this one a click."""
        payload = _packed(embedding)
        content = self._signature(key, payload) + payload
        path = self._path(key)
        if len(content) > self.max_bytes:
            return
        try:
            write_atomically(path, content)
        except OSError:
            return
        with self._lock:
            self._sizes[path.name] = len(content)
            self._sizes.move_to_end(path.name)
        self._evict()

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.blake2b(key.encode(), digest_size=20).hexdigest() + _SUFFIX)

    def _signature(self, key: str, payload: bytes) -> bytes:
        digest = hashlib.blake2b(key.encode() + b"\0", key=self._secret, digest_size=_DIGEST_BYTES)
        digest.update(payload)
        return digest.digest()

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with self._lock:
            self._sizes.pop(path.name, None)

    def _evict(self) -> None:
        with self._lock:
            while sum(self._sizes.values()) > self.max_bytes:
                name, _ = self._sizes.popitem(last=False)
                (self.folder / name).unlink(missing_ok=True)


def _secret(path: Path) -> bytes:
    """This folder's own key, made at the first start; a damaged one is replaced, and no older file verifies."""
    if path.is_file() and path.stat().st_size == _SECRET_BYTES:
        return path.read_bytes()
    path.unlink(missing_ok=True)
    secret = secrets.token_bytes(_SECRET_BYTES)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    return secret


def _packed(embedding: ImageEmbedding) -> bytes:
    facts = {"original_size": json.dumps(embedding.original_size), "encoder_digest": embedding.encoder_digest}
    features = {f"{n:03}": f.detach().cpu().contiguous() for n, f in enumerate(embedding.features)}
    return json.dumps(facts).encode().ljust(512) + save(features)


def _unpacked(payload: bytes) -> ImageEmbedding:
    facts = json.loads(payload[:512])
    features = load(payload[512:])
    height, width = json.loads(facts["original_size"])
    return ImageEmbedding(tuple(features[name] for name in sorted(features)), (height, width), facts["encoder_digest"])
