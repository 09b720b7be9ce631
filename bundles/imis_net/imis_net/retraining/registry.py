"""Versions of a deployment's weights: kept whole, published atomically, taken back in one call.

    ROOT/versions/<digest>/weights.safetensors, facts.json, report.html   immutable once there
    ROOT/current.json                                                     what is served, and what was before it
    ROOT/history.jsonl                                                    every publication and rollback

One small file says what is served; it is replaced by a rename, so that a reader sees the old state or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from imis_net.checkpoint import sha256
from imis_net.errors import CheckpointError
from imis_net.files import write_durably

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Served:
    """What ``current.json`` says: digests of weight files, sha256."""

    digest: str
    previous: tuple[str, ...]
    published: str
    reason: str


class ModelRegistry:
    """Safe to use from several processes: writers take a lock, readers need none."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._versions = self.root / "versions"
        self._versions.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.root / "lock")

    def current(self) -> Served | None:
        """What is served; None before the first publication.

        Raises:
            CheckpointError: the file is there but damaged.
        """
        path = self.root / "current.json"
        try:
            facts = json.loads(path.read_text())
            return Served(facts["digest"], tuple(facts["previous"]), facts["published"], facts["reason"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: expected a publication, got something else: {error}") from error

    def weights(self, digest: str) -> Path:
        """The weights of a version.

        Raises:
            CheckpointError: no such version.
        """
        path = self._folder(digest) / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"no version {digest[:12]!r} in the registry, it has {self.versions()}")
        return path

    def facts(self, digest: str) -> dict[str, object]:
        return json.loads((self._folder(digest) / "facts.json").read_text())

    def versions(self) -> list[str]:
        return sorted(p.name for p in self._versions.iterdir() if not p.name.startswith("."))

    def add(self, weights: Path, facts: Mapping[str, object], report: str = "") -> str:
        """Keep a candidate, published or not, with what is known about it; returns its digest.

        The version appears whole: it is written beside, then renamed. Adding the same weights again changes nothing.
        """
        digest = sha256(weights)
        with self._lock:
            folder = self._versions / digest
            if folder.is_dir():
                return digest
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._versions))
            try:
                shutil.copyfile(weights, draft / WEIGHTS)
                write_durably(draft / "facts.json", json.dumps(dict(facts), indent=1).encode())
                write_durably(draft / "report.html", report.encode())
                _sync(draft / WEIGHTS)
                os.replace(draft, folder)
                _sync(self._versions)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return digest

    def publish(self, digest: str, reason: str) -> Served:
        """Serve a version from now on.

        Raises:
            CheckpointError: no such version, or its file is not what its digest says.
        """
        with self._lock:
            path = self.weights(digest)
            if sha256(path) != digest:
                raise CheckpointError(f"version {digest[:12]}: its weights have changed since they were kept")
            before = self.current()
            previous = () if before is None else (before.digest, *before.previous)
            return self._serve(digest, previous, reason)

    def rollback(self, reason: str = "rollback") -> Served:
        """Serve what was served before.

        Raises:
            CheckpointError: there is nothing before it.
        """
        with self._lock:
            now = self.current()
            if now is None or not now.previous:
                raise CheckpointError("nothing to roll back to: only one version was ever published")
            return self._serve(now.previous[0], now.previous[1:], reason)

    def history(self) -> list[dict[str, object]]:
        path = self.root / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def _serve(self, digest: str, previous: tuple[str, ...], reason: str) -> Served:
        served = Served(digest, previous, datetime.now(timezone.utc).isoformat(timespec="seconds"), reason)
        content = json.dumps(asdict(served)).encode()
        write_durably(self.root / "current.json", content)
        with (self.root / "history.jsonl").open("ab") as file:
            file.write(content + b"\n")
        return served

    def _folder(self, digest: str) -> Path:
        if not digest or not all(c in "0123456789abcdef" for c in digest):
            raise CheckpointError(f"version: expected a sha256 in hexadecimal, got {digest[:80]!r}")
        return self._versions / digest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
