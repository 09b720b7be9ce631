"""Original frame <-> model frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from imis_net.errors import ImageError
from imis_net.transforms import Frame


@pytest.mark.parametrize("size", [(300, 420), (777, 1100), (63, 31), (256, 256)])
def test_nearest_is_pillows(size):
    """Breaks if a pixel's centre is rounded otherwise than the reference's resize does."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.NEAREST))
    assert np.array_equal(Frame(256).image(image)[0].permute(1, 2, 0).numpy(), expected)


def test_coordinates_scale_each_axis_by_itself():
    """Breaks if x is scaled by the height."""
    scaled = Frame(256).points(torch.tensor([[210.0, 60.0]]), original_size=(300, 420))
    torch.testing.assert_close(scaled, torch.tensor([[128.0, 51.2]]))
    box = Frame(256).boxes(torch.tensor([[42.0, 60, 210, 150]]), (300, 420))
    torch.testing.assert_close(box, torch.tensor([[25.6, 51.2, 128.0, 128.0]]))


def test_logits_come_back_at_the_original_size_and_place():
    """Breaks if rows and columns are swapped on the way back."""
    low = torch.full((1, 1, 64, 64), -1.0)
    low[..., :16, 32:] = 1  # upper quarter, right half
    mask = Frame(256).to_original(low, (80, 200))[0, 0] > 0
    assert mask.shape == (80, 200)
    assert mask[2, 190]
    assert not mask[2, 10]
    assert not mask[60, 190]


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_than_8_bit_rgb_is_refused(image):
    """Breaks if a grey or float image is encoded as if it were RGB."""
    with pytest.raises(ImageError, match="uint8"):
        Frame(256).image(image)


SMALL = Frame(256, "bilinear", max_enlargement=4)


@pytest.mark.parametrize("size", [(20, 30), (20, 200), (300, 40), (64, 64), (256, 256)])
def test_no_axis_is_enlarged_more_than_allowed(size):
    """Breaks if a small image is stretched to the whole frame, or a large one leaves part of it black."""
    shown = SMALL.image(np.full((*size, 3), 255, np.uint8))[0, 0] > 127
    rows, columns = (int(shown.any(axis).sum()) for axis in (1, 0))
    assert abs(rows - min(4 * size[0], 256)) <= 1
    assert abs(columns - min(4 * size[1], 256)) <= 1
    assert shown[: rows - 1, : columns - 1].all()


@pytest.mark.parametrize("size", [(20, 30), (20, 200), (300, 40), (100, 100)])
def test_prompts_and_masks_go_where_the_image_goes(size):
    """Breaks if a click, a previous mask, a target or the answer is stretched otherwise than the pixels are."""
    image, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, bool)
    rows, columns = slice(size[0] // 4, size[0] // 2), slice(size[1] // 2, size[1] * 3 // 4)
    image[rows, columns], mask[rows, columns] = 255, True
    shown = (SMALL.image(image)[0, 0] > 127).numpy()
    np.testing.assert_array_equal(SMALL.mask(mask), shown)
    x, y = SMALL.points(torch.tensor([[columns.start + 1.0, rows.start + 1.0]]), size)[0].round().long().tolist()
    assert shown[y, x]
    low_res = SMALL.low_res(np.where(mask, 5.0, -5.0), beside=-5.0)
    back = SMALL.to_original(torch.from_numpy(low_res)[None, None], size)[0, 0].numpy() > 0
    assert back.shape == size
    assert (back & mask).sum() > 0.8 * (back | mask).sum()
