"""What scoring found, on disk: shared by the server and a scoring task, and there again after a restart."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imis_net.retraining.selection import ImageScore

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
    image TEXT PRIMARY KEY,
    weights TEXT NOT NULL,           -- digest of the model that was asked
    uncertainty REAL,                -- NULL: the image cannot be read
    descriptor BLOB                  -- float32, little endian
);
"""
BUSY_S = 10.0


@dataclass(frozen=True)
class Scored:
    """One image's newest score, None for an image that cannot be read, and whose it is."""

    weights: str
    score: ImageScore | None


class ScoreStore:
    """SQLite. Thread safe; several processes may use one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds names of images
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")  # a score that a power cut takes is made again
        self._database.executescript(_SCHEMA)
        self._known: dict[str, Scored] = {}
        self._seen = -1

    def keep(self, image: str, scored: Scored) -> None:
        """
        Raises:
            sqlite3.Error: not kept, such as on a full disk.
        """
        score = scored.score
        row = (score.uncertainty, score.descriptor.astype("<f4").tobytes()) if score else (None, None)
        with self._lock:
            self._known[image] = scored
            with self._database:
                self._database.execute(
                    "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", (image, scored.weights, *row)
                )

    def read(self) -> Mapping[str, Scored]:
        """All images' scores."""
        with self._lock:
            # It changes when another process wrote; what this one wrote is known.
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
            if version != self._seen:
                rows = self._database.execute("SELECT * FROM scores")
                self._known = {image: Scored(weights, _score(*found)) for image, weights, *found in rows}
                self._seen = version
            return dict(self._known)

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _score(uncertainty: float | None, descriptor: bytes | None) -> ImageScore | None:
    if uncertainty is None or descriptor is None:
        return None
    return ImageScore(uncertainty, np.frombuffer(descriptor, "<f4"))
