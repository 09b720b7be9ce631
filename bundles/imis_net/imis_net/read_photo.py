"""PNG, JPEG, TIFF and BMP: pictures without a place in the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from imis_net.errors import ImageError
from imis_net.volume import Volume

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

MAX_NUM_PIXELS = 80_000_000
"""Below Pillow's own alarm: a PNG of a few kB can unpack to gigabytes. Whole slide images belong in tiles."""

_PIXEL_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""One pixel is 1 mm, i to the patient's left, j to the back: what ITK makes of pictures."""


def read_photo(path: Path) -> Volume:
    """Grey of 8 or 16 bits stays grey, everything else becomes RGB, alpha is dropped. An EXIF orientation is left
    alone: coordinates and masks are of the pixels as stored.

    Raises:
        ImageError: too many pixels, more than one page.
    """
    with Image.open(path, formats=FORMATS) as picture:
        width, height = picture.size
        if width * height > MAX_NUM_PIXELS:
            raise ImageError(f"{width} x {height} pixels: at most {MAX_NUM_PIXELS} in all are read")
        num_pages = getattr(picture, "n_frames", 1)
        if num_pages != 1:
            raise ImageError(f"{num_pages} pages: expected a file of one picture")
        pixels = _pixels(picture)
    return Volume(pixels.swapaxes(0, 1)[:, :, None], _PIXEL_AFFINE, has_spacing=False)


def _pixels(picture: Image.Image) -> np.ndarray:
    """[H, W], or uint8 [H, W, 3]."""
    if picture.mode in ("1", "L", "LA", "La"):
        return np.asarray(picture.convert("L"))
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return np.asarray(picture.convert("RGB"))
