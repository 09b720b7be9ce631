"""The picture for people."""

from __future__ import annotations

import numpy as np
import pytest

from imis_net.errors import ImageError
from imis_net.overlay import BACKGROUND_COLOUR, BOX_COLOUR, FOREGROUND_COLOUR, MASK_COLOUR, draw_overlay
from imis_net.prompts import Prompt

IMAGE = np.full((600, 700, 3), 100, np.uint8)


def test_the_mask_is_tinted_and_outlined_and_the_rest_untouched() -> None:
    """Fails if the tint covers the image, rows and columns swap, or the input is painted on."""
    mask = np.zeros((600, 700), bool)
    mask[100:200, 300:500] = True
    picture = draw_overlay(IMAGE, mask)
    assert tuple(picture[100, 300]) == tuple(picture[199, 499]) == MASK_COLOUR
    assert 100 < picture[150, 400, 0] < MASK_COLOUR[0]
    np.testing.assert_array_equal(picture[~mask], IMAGE[~mask])
    assert (IMAGE == 100).all()


def test_clicks_and_box_are_drawn_where_they_are() -> None:
    """Fails if x and y swap, or foreground and background look the same."""
    prompt = Prompt(np.array([[350, 50], [20, 400]]), np.array([1, 0]), box=np.array([200, 100, 650, 500]))
    picture = draw_overlay(IMAGE, None, prompt)
    assert tuple(picture[50, 350]) == FOREGROUND_COLOUR
    assert tuple(picture[400, 20]) == BACKGROUND_COLOUR
    assert tuple(picture[100, 400]) == tuple(picture[300, 650]) == BOX_COLOUR


def test_small_images_are_enlarged_with_their_prompts() -> None:
    """Fails if the markers stay behind when a small image is enlarged."""
    picture = draw_overlay(np.zeros((50, 64, 3), np.uint8), None, Prompt(np.array([[10, 40]]), np.array([1])))
    assert picture.shape == (400, 512, 3)
    assert tuple(picture[324, 84]) == FOREGROUND_COLOUR


def test_masks_and_images_that_do_not_fit_are_refused() -> None:
    """Fails if a transposed mask or a grey image is drawn somehow."""
    with pytest.raises(ImageError, match="mask"):
        draw_overlay(IMAGE, np.zeros((700, 600), bool))
    with pytest.raises(ImageError, match="image"):
        draw_overlay(IMAGE[..., 0], np.zeros((600, 700), bool))
