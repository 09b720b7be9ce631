"""lib.pictures: what a slice is encoded from, made once for all clicks on it, and not kept beyond its volume."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from imis_net.errors import ImageError
from imis_net.images import Volume
from lib.pictures import MAX_NUM_PICTURES, Picture, PictureCache, Place


def _volume(value: int = 0) -> Volume:
    voxels = np.arange(8 * 6 * 20, dtype=np.int16).reshape(8, 6, 20) + value
    return Volume(voxels, np.eye(4))


def test_a_second_click_gets_the_same_picture_and_another_view_another() -> None:
    """Breaks if a click windows the slice again, or is answered on another slice, axis, window or volume."""
    cache, volume = PictureCache(), _volume()
    first = cache.of(Place(volume, 2, 1, None))
    assert cache.of(Place(volume, 2, 1, None)) is first
    np.testing.assert_array_equal(first.image, volume.slice_rgb(1))
    others = [Place(volume, 2, 2, None), Place(volume, 1, 1, None), Place(volume, 2, 1, (40, 80))]
    digests = [cache.of(place).digest for place in [*others, Place(_volume(200), 2, 1, (40, 80))]]
    assert len({first.digest, *digests}) == 1 + len(digests)


def test_the_digest_is_of_the_pixels_and_their_shape() -> None:
    """Breaks if one image in two places is encoded twice, or two images of the same bytes are taken for one."""
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert Picture.of(image).digest == Picture.of(image.copy()).digest
    assert Picture.of(image).digest != Picture.of(image.reshape(6, 4, 3)).digest


def test_pictures_are_bounded_and_go_with_their_volume() -> None:
    """Breaks if memory grows with every slice that was clicked, or a volume that was evicted stays in memory."""
    cache, volume = PictureCache(), _volume()
    first = cache.of(Place(volume, 2, 0, None))
    for index in range(1, MAX_NUM_PICTURES + 1):
        cache.of(Place(volume, 2, index, None))
    assert cache.of(Place(volume, 2, 0, None)) is not first
    gone = weakref.ref(volume)
    del volume
    gc.collect()
    assert gone() is None


def test_no_such_slice_is_the_callers_error() -> None:
    """Breaks if a click beside the volume becomes a 500, or spoils the next one."""
    cache, volume = PictureCache(), _volume()
    with pytest.raises(ImageError, match="no such slice"):
        cache.of(Place(volume, 2, 20, None))
    assert cache.of(Place(volume, 2, 19, None)).image.shape == (6, 8, 3)
