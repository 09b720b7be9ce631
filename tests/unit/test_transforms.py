"""Original frame <-> model frame."""

import numpy as np
import pytest
import torch
from PIL import Image

from imis_net.errors import ImageError
from imis_net.transforms import box_to_model_frame, logits_to_original, points_to_model_frame, to_model_frame


@pytest.mark.parametrize("size", [(300, 420), (777, 1100), (63, 31), (256, 256)])
def test_nearest_is_pillows(size):
    """Breaks if a pixel's centre is rounded otherwise than the reference's resize does."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.NEAREST))
    assert np.array_equal(to_model_frame(image, 256)[0].permute(1, 2, 0).numpy(), expected)


def test_coordinates_scale_each_axis_by_itself():
    """Breaks if x is scaled by the height."""
    scaled = points_to_model_frame(torch.tensor([[210.0, 60.0]]), original_size=(300, 420), side=256)
    torch.testing.assert_close(scaled, torch.tensor([[128.0, 51.2]]))
    box = box_to_model_frame(torch.tensor([[42.0, 60, 210, 150]]), (300, 420), 256)
    torch.testing.assert_close(box, torch.tensor([[25.6, 51.2, 128.0, 128.0]]))


def test_logits_come_back_at_the_original_size_and_place():
    """Breaks if rows and columns are swapped on the way back."""
    low = torch.full((1, 1, 64, 64), -1.0)
    low[..., :16, 32:] = 1  # upper quarter, right half
    mask = logits_to_original(low, (80, 200), 256)[0, 0] > 0
    assert mask.shape == (80, 200)
    assert mask[2, 190]
    assert not mask[2, 10]
    assert not mask[60, 190]


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_than_8_bit_rgb_is_refused(image):
    """Breaks if a grey or float image is encoded as if it were RGB."""
    with pytest.raises(ImageError, match="uint8"):
        to_model_frame(image, 256)
