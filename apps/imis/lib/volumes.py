"""Decoded volumes by file: bounded in bytes, least recently used goes first. Reading takes most of a first click."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from imis_net.images import Volume, read_volume

Key = tuple[str, int, int]


class VolumeCache:
    """Thread safe. A file that changed is another volume."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._volumes: OrderedDict[Key, Volume] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        with self._lock:
            return sum(v.array.nbytes for v in self._volumes.values())

    def read(self, path: Path) -> Volume:
        """The volume of a file or of a DICOM series' folder.

        Raises:
            ImageError: no such file, or none that can be read.
        """
        key = _key(path)
        with self._lock:
            if key in self._volumes:
                self._volumes.move_to_end(key)
                return self._volumes[key]
        volume = read_volume(path)
        with self._lock:
            self._volumes[key] = volume
            while sum(v.array.nbytes for v in self._volumes.values()) > self.max_bytes:
                self._volumes.popitem(last=False)
        return volume


def _key(path: Path) -> Key:
    """Path, newest modification and size, over all files of a folder."""
    files = [p for p in path.iterdir() if p.is_file()] if path.is_dir() else [path]
    stats = [f.stat() for f in files if f.exists()]  # a missing file is read_volume's to report
    return str(path), max((s.st_mtime_ns for s in stats), default=0), sum(s.st_size for s in stats)
