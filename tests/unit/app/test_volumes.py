"""lib.volumes: a second click reads nothing, a changed file is read again, memory stays bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imis_net.errors import ImageError
from lib.volumes import VolumeCache


def _picture(path: Path, value: int) -> Path:
    Image.fromarray(np.full((8, 6), value, np.uint8)).save(path)
    return path


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(tmp_path: Path) -> None:
    """Breaks when each click decodes the volume, or a replaced image keeps serving its old pixels."""
    cache = VolumeCache(max_bytes=10_000)
    path = _picture(tmp_path / "a.png", 7)
    first = cache.read(path)
    assert cache.read(path) is first
    _picture(path, 200)
    os.utime(path, ns=(1, 1))
    assert cache.read(path).array.max() == 200


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Breaks when memory grows with every image that was ever clicked."""
    a, b, c = (_picture(tmp_path / f"{name}.png", 1) for name in "abc")
    size = VolumeCache(10_000).read(a).array.nbytes
    cache = VolumeCache(max_bytes=2 * size)
    first, second = cache.read(a), cache.read(b)
    assert cache.read(a) is first
    cache.read(c)
    assert cache.read(a) is first
    assert cache.read(b) is not second


def test_a_missing_file_is_the_callers_error(tmp_path: Path) -> None:
    """Breaks when a deleted image becomes a 500."""
    with pytest.raises(ImageError):
        VolumeCache(10_000).read(tmp_path / "gone.png")
