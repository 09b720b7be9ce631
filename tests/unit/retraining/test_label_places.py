"""What other patients' labels say of where a name lies."""

import numpy as np
import pytest

from imis_net.retraining.label_places import MAX_SQUARED_DISTANCE, MIN_NUM_PATIENTS, Places, centres


def label(x: int, y: int) -> np.ndarray:
    made = np.zeros((100, 200), np.uint8)
    made[y - 2 : y + 2, x - 3 : x + 3] = 7
    return made


def test_centres_are_in_sides_of_the_image_and_have_one_spelling():
    """Breaks if x and y are mixed up, an unnamed target counts, or two spellings are two organs."""
    drawn = label(50, 80)
    drawn[:5, :5] = 9
    (centre,) = centres(drawn, {7: "Kidney_Right", 9: ""}, "a")
    assert centre.name == "right kidney"
    np.testing.assert_allclose(centre.xy, [-0.25, 0.3])
    assert centres(drawn, {}, "a") == []


def test_only_other_patients_count():
    """Breaks if a patient's own slices prove their side, or a single label weighs more than it may."""
    known = [c for n in range(MIN_NUM_PATIENTS) for c in centres(label(50, 50), {7: "liver"}, f"patient {n}")]
    mirrored = centres(label(150, 50), {7: "liver"}, "another")
    assert Places(known).gain(mirrored, (-1, 1)) == pytest.approx(MAX_SQUARED_DISTANCE / 2)
    assert Places(known).gain(mirrored, (1, -1)) == 0
    assert Places(known).gain(centres(label(150, 50), {7: "liver"}, "patient 0"), (-1, 1)) is None
    assert Places(known).gain(centres(label(150, 50), {7: "spleen"}, "another"), (-1, 1)) is None
