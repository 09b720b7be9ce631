"""Interactive masks and what stands in for them."""

import numpy as np

from imis_net.training.regions import appearance_regions, cleaned


def test_specks_go_and_holes_close():
    """Breaks if single pixels become targets."""
    mask = np.zeros((64, 64), bool)
    mask[10:30, 10:30] = True
    mask[20, 20] = False
    mask[50, 50] = True
    clean = cleaned(mask)
    assert clean[20, 20]
    assert not clean[50, 50]
    assert not cleaned(np.zeros((8, 8), bool)).any()


def test_regions_follow_appearance():
    """Breaks if background counts as a region, or two tissues as one."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:30, 8:56], image[34:56, 8:56] = 200, 100
    regions = appearance_regions(image)
    assert regions[0, 0] == 0
    assert 0 != regions[20, 30] != regions[45, 30] != 0
