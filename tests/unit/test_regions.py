"""Interactive masks and what stands in for them."""

import numpy as np
import pytest

from imis_net.training.regions import appearance_regions, cleaned, intensity_classes


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


def test_a_tissue_is_one_class_in_however_many_pieces():
    """Breaks if brightness classes are split into parts, mixed, or background becomes one."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[4:60, 4:60] = 90
    image[10:20, 10:20] = image[40:50, 40:50] = 200
    classes = intensity_classes(image, 2)
    assert classes[0, 0] == 0
    assert classes[15, 15] == classes[45, 45] == 2
    assert classes[30, 30] == 1


def test_more_tissues_than_grey_values_are_refused():
    """Breaks if a flat image gives classes that nothing in it tells apart."""
    with pytest.raises(ValueError, match="different values"):
        intensity_classes(np.full((32, 32, 3), 128, np.uint8), 3)
