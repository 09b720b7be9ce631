"""Prompts: what is accepted, normalised and refused."""

import numpy as np
import pytest

from imis_net.errors import PromptError
from imis_net.prompts import MAX_NUM_CLICKS, Prompt


def test_box_corners_come_in_any_order():
    """Breaks if Slicer's swapped corners give a box of no area."""
    assert Prompt(box=np.array([30, 40, 10, 20])).box.tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no prompt"),
        ({"text": "  "}, "no prompt"),
        ({"text": 5}, "expected a word"),
        ({"point_coords": []}, "without the other"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "expected 1 .foreground. or 0"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 1]}, "expected 1 of them"),
        ({"point_coords": [[1, float("nan")]], "point_labels": [1]}, "finite"),
        ({"point_coords": [["a", 2]], "point_labels": [1]}, "expected numbers"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, "list of"),
        ({"point_coords": [[1, 2]] * (MAX_NUM_CLICKS + 1), "point_labels": [1] * (MAX_NUM_CLICKS + 1)}, "too many"),
        ({"box": [1, 2, 3]}, "4 numbers"),
        ({"box": [5, 5, 5, 9]}, "no area"),
        ({"low_res_mask": np.zeros((4, 5))}, "square"),
    ],
)
def test_unusable_prompts_are_refused(fields, message):
    """Breaks if a bad prompt reaches the network instead of a sentence."""
    with pytest.raises(PromptError, match=message):
        Prompt(**fields)


@pytest.mark.parametrize(("x", "y", "inside"), [(0, 0, True), (19, 9, True), (20, 5, False), (5, 10, False)])
def test_clicks_must_lie_in_the_image(x, y, inside):
    """Breaks if width and height are swapped, or the last row and column count as outside."""
    prompt = Prompt(np.array([[x, y]]), np.array([1]))
    if inside:
        prompt.check_inside(height_px=10, width_px=20)
    else:
        with pytest.raises(PromptError, match=rf"x={x}, y={y}"):
            prompt.check_inside(height_px=10, width_px=20)


def test_box_beside_the_image_is_refused():
    """Breaks if a box that touches no pixel is segmented."""
    with pytest.raises(PromptError, match="box outside"):
        Prompt(box=np.array([30, 0, 40, 5])).check_inside(height_px=10, width_px=20)


def test_infinite_precision_is_not_infinite_size():
    """Breaks if a box near float32's end, finite by itself, becomes NaN in the network."""
    with pytest.raises(PromptError, match="near the image"):
        Prompt(box=[-3e38, -3e38, 3e38, 3e38])


def test_click_in_the_outermost_half_pixel_is_inside():
    """Breaks if the image is thought to end at its last pixel's centre."""
    Prompt(np.array([[-0.5, 9.5], [19.5, -0.5]]), np.array([1, 0])).check_inside(height_px=10, width_px=20)
