"""Drawn scenes: images that show their own labels."""

import numpy as np
import pytest

from imis_net.training.scenes import MIN_SIDE, SCENES, random_scene


@pytest.mark.parametrize("draw", SCENES[1:], ids=lambda f: f.__name__)
@pytest.mark.parametrize("side", [MIN_SIDE, 131])
def test_labels_lie_on_what_the_image_shows(draw, side):
    """Breaks if bending or labelling shifts the label map against the picture: no edge at a target's border."""
    edges = []
    for seed in range(12):
        image, label_maps = draw(side, np.random.default_rng(seed))
        rows, columns = np.gradient(image)
        steepness = np.hypot(rows, columns)
        labels = label_maps[0]
        border = (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))
        border[0], border[:, 0] = False, False
        edges.append(steepness[border].mean() / steepness[~border].mean())
    assert np.median(edges) > 1.15


def test_scenes_differ_and_are_repeatable():
    """Breaks if the generator is not the only source of chance."""
    first, again, other = (random_scene(np.random.default_rng(s)) for s in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_every_scene_has_targets_of_its_own_size():
    """Breaks if a scene comes without a target, or with a label map that does not fit its image."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        scene = random_scene(rng)
        assert scene.targets
        assert all(m.shape == scene.image.shape[:2] and m.dtype == np.uint16 for m, _ in scene.targets)
