"""Slices as pictures: a second click on a slice neither windows nor digests it again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from imis_net.images import Volume

MAX_NUM_PICTURES = 8
"""Of each volume: the slices that are worked on at one time; those around them are encoded ahead once and not again."""


@dataclass(frozen=True)
class Place:
    """The slice that somebody works on, as it is shown."""

    volume: Volume
    axis: int
    index: int
    window: tuple[float, float] | None

    def neighbours(self, reach: int) -> Iterator[int]:
        """Indices nearest first, within the volume."""
        for distance in range(1, reach + 1):
            for index in (self.index + distance, self.index - distance):
                if 0 <= index < self.volume.num_slices(self.axis):
                    yield index

    def picture(self) -> Picture:
        """
        Raises:
            ImageError: no such slice, or no such window.
        """
        return Picture.of(self.volume.slice_rgb(self.index, self.axis, self.window))


@dataclass(frozen=True, eq=False)
class Picture:
    """What the encoder sees, uint8 [H, W, 3], and its digest: the same for the same pixels, whatever their name."""

    image: np.ndarray
    digest: str

    @classmethod
    def of(cls, image: np.ndarray) -> Picture:
        shape = f"{image.shape[0]}x{image.shape[1]}".encode()
        return cls(image, hashlib.blake2b(image.data, digest_size=8, person=shape).hexdigest())


Shown = tuple[int, int, tuple[float, float] | None]
"""A place without its volume: a picture must not keep that alive."""


class PictureCache:
    """The pictures last asked for of each volume, which go when the volume goes. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pictures: WeakKeyDictionary[Volume, OrderedDict[Shown, Picture]] = WeakKeyDictionary()

    def of(self, place: Place) -> Picture:
        """
        Raises:
            ImageError: no such slice, or no such window.
        """
        key: Shown = place.axis, place.index, place.window
        with self._lock:
            kept = self._pictures.setdefault(place.volume, OrderedDict())
            if key in kept:
                kept.move_to_end(key)
                return kept[key]
        picture = place.picture()
        with self._lock:
            kept[key] = picture
            while len(kept) > MAX_NUM_PICTURES:
                kept.popitem(last=False)
        return picture
