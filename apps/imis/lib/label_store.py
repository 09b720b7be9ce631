"""Every save of every label, for good: an index in SQLite beside files named by their content.

A save is acknowledged when its file and then its row are on the disk. A row without its file cannot be, and a file
without a row was never acknowledged: so a kill, a full disk or a failing one at any moment costs at most the save that
was told to have failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imis_net.files import write_durably

_SCHEMA = """
CREATE TABLE IF NOT EXISTS versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
    image TEXT NOT NULL, tag TEXT NOT NULL,
    suffix TEXT NOT NULL,                  -- of the file's name, such as .nii.gz
    sha256 TEXT NOT NULL,
    parent INTEGER,                        -- the version that the author had before them
    author TEXT NOT NULL,
    time REAL NOT NULL,
    facts TEXT NOT NULL                    -- JSON: names of values, weights, prompts
);
CREATE INDEX IF NOT EXISTS versions_of_image ON versions (image, tag, id);
CREATE TABLE IF NOT EXISTS uploads (  -- of the versions that an archive shall have too
    version INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    reason TEXT NOT NULL              -- why it is not there yet, or never will be
);
"""
_COLUMNS = "id, image, tag, suffix, sha256, parent, author, time, facts"


@dataclass(frozen=True)
class Version:
    """One save. ``time`` is in seconds since 1970; ``parent`` None where the author began from nothing."""

    id: int
    image: str
    tag: str
    suffix: str
    sha256: str
    parent: int | None
    author: str
    time: float
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """How far a version is on its way to an archive: ``waiting``, ``stored`` or ``impossible``."""

    state: str
    reason: str = ""


WAITING, STORED, IMPOSSIBLE = "waiting", "stored", "impossible"


class LabelStoreError(Exception):
    """A version that is not there, or whose file is not what was saved."""


class LabelStore:
    """Thread safe, and safe beside another server on the same folder."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            sqlite3.Error, OSError: the folder cannot be read or written.
        """
        self.files = folder / "files"
        self.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        index = folder / "index.sqlite"
        os.close(os.open(index, os.O_CREAT | os.O_RDWR, 0o600))  # it holds names of images
        self._lock = threading.Lock()
        self._database = sqlite3.connect(index, timeout=30, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)

    def append(
        self,
        image: str,
        tag: str,
        content: bytes,
        suffix: str,
        author: str,
        facts: Mapping[str, object],
        parent: int | None = None,
        is_to_upload: bool = False,
    ) -> Version:
        """Keep one save, and that it is to be uploaded; both are on the disk when this returns.

        Raises:
            OSError, sqlite3.Error: it is not, and nothing of it will be seen.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        # Also where such a file is: it may be damaged, or not yet on the disk.
        write_durably(self.files / sha256, content)
        row = (image, tag, suffix, sha256, parent, author, time.time(), json.dumps(dict(facts)))
        with self._lock, self._database:
            cursor = self._database.execute("INSERT INTO versions VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            assert cursor.lastrowid is not None
            if is_to_upload:
                self._database.execute("INSERT INTO uploads VALUES (?, ?, '')", (cursor.lastrowid, WAITING))
        return Version(cursor.lastrowid, image, tag, suffix, sha256, parent, author, row[6], facts)

    def versions(self, image: str, tag: str | None = None) -> list[Version]:
        """The oldest first."""
        query = f"SELECT {_COLUMNS} FROM versions WHERE image = ? AND tag = IFNULL(?, tag) ORDER BY id"
        return self._select(query, image, tag)

    def newest(self, image: str, tag: str, before: int | None = None) -> Version | None:
        """The last save, or the last one ``before`` a version."""
        query = f"SELECT {_COLUMNS} FROM versions WHERE image = ? AND tag = ? AND id < IFNULL(?, id + 1)"
        return next(iter(self._select(f"{query} ORDER BY id DESC LIMIT 1", image, tag, before)), None)

    def all_newest(self) -> list[Version]:
        """The newest version of each image and tag."""
        return self._select(
            f"SELECT {_COLUMNS} FROM versions WHERE id IN (SELECT MAX(id) FROM versions GROUP BY image, tag)"
        )

    def get(self, image: str, version: int) -> Version:
        """
        Raises:
            LabelStoreError: this image has no such version.
        """
        found = self._select(f"SELECT {_COLUMNS} FROM versions WHERE image = ? AND id = ?", image, version)
        if not found:
            raise LabelStoreError(f"no such version: got {version} of {image!r}")
        return found[0]

    def read(self, version: Version) -> bytes:
        """The file as it was saved.

        Raises:
            LabelStoreError: it is missing or was changed.
        """
        try:
            content = (self.files / version.sha256).read_bytes()
        except OSError as error:
            raise LabelStoreError(f"version {version.id}: its file cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != version.sha256:
            raise LabelStoreError(f"version {version.id}: its file is not what was saved")
        return content

    def waiting(self) -> list[Version]:
        """What is still to be uploaded, the newest first: that is the one that somebody may be waiting for."""
        chosen = "SELECT version FROM uploads WHERE state = ?"
        return self._select(f"SELECT {_COLUMNS} FROM versions WHERE id IN ({chosen}) ORDER BY id DESC", WAITING)

    def upload(self, version: int) -> Upload | None:
        """None where it was never to be uploaded."""
        with self._lock:
            row = self._database.execute("SELECT state, reason FROM uploads WHERE version = ?", (version,)).fetchone()
        return Upload(*row) if row else None

    def set_upload(self, version: int, upload: Upload) -> None:
        with self._lock, self._database:
            change = "UPDATE uploads SET state = ?, reason = ? WHERE version = ?"
            self._database.execute(change, (upload.state, upload.reason, version))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _select(self, query: str, *values: object) -> list[Version]:
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [Version(*(*row[:-1], json.loads(row[-1]))) for row in rows]
