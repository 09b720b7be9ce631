"""Every step of every target, in the order it was acknowledged: what a killed server needs to go on where it was."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL, image TEXT NOT NULL, target TEXT NOT NULL,
    kind TEXT NOT NULL,              -- prompt, clear, undo or redo
    params TEXT NOT NULL,            -- JSON, of a prompt
    weights TEXT NOT NULL,           -- digest of the model that answered
    mask TEXT NOT NULL,              -- digest of the mask that it answered with
    time REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_target ON events (user, image, target, id);
"""


@dataclass(frozen=True)
class TargetKey:
    """One user's target on one image. Two users never share one."""

    user: str
    image: str
    target: str


@dataclass(frozen=True)
class Event:
    kind: str
    params: Mapping[str, object]
    weights: str = ""
    mask: str = ""


class PromptLog:
    """SQLite, on the disk before ``append`` returns. Thread safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds names of images
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)

    def append(self, key: TargetKey, events: list[Event]) -> None:
        """All of them or none.

        Raises:
            sqlite3.Error: not stored, such as on a full disk; the step must not be acknowledged.
        """
        rows = [
            (key.user, key.image, key.target, e.kind, json.dumps(dict(e.params)), e.weights, e.mask, time.time())
            for e in events
        ]
        with self._lock, self._database:
            self._database.executemany("INSERT INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def read(self, key: TargetKey) -> list[Event]:
        query = "SELECT kind, params, weights, mask FROM events WHERE user = ? AND image = ? AND target = ? ORDER BY id"
        with self._lock:
            rows = self._database.execute(query, (key.user, key.image, key.target)).fetchall()
        return [Event(kind, json.loads(params), weights, mask) for kind, params, weights, mask in rows]

    def targets(self, user: str, image: str) -> list[str]:
        """Names, in the order of their first step."""
        query = "SELECT target FROM events WHERE user = ? AND image = ? GROUP BY target ORDER BY MIN(id)"
        with self._lock:
            return [name for (name,) in self._database.execute(query, (user, image))]

    def close(self) -> None:
        with self._lock:
            self._database.close()
