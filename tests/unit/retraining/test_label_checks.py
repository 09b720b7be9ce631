"""Bad labels are found, good ones stay."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from imis_net.retraining.label_checks import LabelledImage, check_label, check_labels


def item(case: str = "a", seed: int = 0) -> LabelledImage:
    """Three organs of different brightness on noise, exactly labelled."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:160, :200]
    label = np.zeros((160, 200), np.uint8)
    for value, (y, x, a, b) in enumerate([(45, 60, 28, 40), (110, 130, 32, 22), (120, 40, 20, 26)], start=1):
        label[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1] = value
    grey = 60 + 45 * label + ndimage.gaussian_filter(rng.normal(0, 20, label.shape), 1)
    return LabelledImage(case, f"p{case}", np.repeat(np.clip(grey, 0, 255)[..., None], 3, 2).astype(np.uint8), label)


def with_label(good: LabelledImage, label: np.ndarray, case: str = "b") -> LabelledImage:
    return LabelledImage(case, good.patient, good.image, label)


def test_good_labels_pass():
    """Breaks if true labels are taken away from training."""
    items = [item(str(i), seed=i) for i in range(5)]
    assert check_labels(items) == (items, [])


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda m: np.zeros_like(m), "empty"),
        (lambda m: np.ones_like(m), "whole-image"),
        (lambda m: m[:100], "size"),
        (lambda m: m.T, "size"),
        (lambda m: m[:, ::-1], "moved"),
        (lambda m: m[::-1], "moved"),
        (lambda m: m[::-1, ::-1], "moved"),
        (lambda m: np.roll(m, (9, -9), (0, 1)), "moved"),
    ],
    ids=["empty", "whole", "cut", "transposed", "mirrored", "upside down", "turned", "shifted"],
)
def test_each_kind_of_bad_label_is_named(spoil, rule):
    """Breaks if one kind passes, or is called another."""
    good = item()
    finding = check_label(with_label(good, spoil(good.label)))
    assert finding is not None
    assert finding.rule == rule


def test_the_shift_is_told():
    """Breaks if rows and columns, or the direction back, are confused."""
    good = item()
    finding = check_label(with_label(good, np.roll(good.label, (9, -14), (0, 1))))
    assert "shifted by 14 columns and -9 rows" in finding.reason


def test_how_people_draw_is_no_shift():
    """Breaks if a label three pixels off is taken away: annotators are no more exact."""
    good = item()
    assert check_label(with_label(good, np.roll(good.label, (2, 2), (0, 1)))) is None


def test_one_of_two_equal_labels_stays():
    """Breaks if duplicates count twice, or both are lost."""
    first = item("a")
    kept, findings = check_labels([first, with_label(first, first.label, "copy")])
    assert kept == [first]
    assert [(f.case, f.rule) for f in findings] == [("copy", "duplicate")]


def test_neither_of_two_contradicting_labels_stays():
    """Breaks if training believes whichever came first."""
    first = item("a")
    other = first.label.copy()
    other[other == 2] = 0
    kept, findings = check_labels([first, with_label(first, other), item("c", seed=5)])
    assert [i.case for i in kept] == ["c"]
    assert {f.rule for f in findings} == {"contradictory"}


def small(patient: int, mirrored_picture: bool = False) -> LabelledImage:
    """One small organ on the left, of a border that is too short to be compared by itself; everybody a little other."""
    rng = np.random.default_rng(patient)
    label = np.zeros((160, 200), np.uint8)
    y, x = rng.integers(70, 80), rng.integers(40, 50)
    label[y : y + 20, x : x + 24] = 1
    grey = 60 + 90 * label + ndimage.gaussian_filter(rng.normal(0, 20, label.shape), 1)
    image = np.repeat(np.clip(grey, 0, 255)[..., None], 3, 2).astype(np.uint8)
    flip = np.s_[:, ::-1] if mirrored_picture else np.s_[:, :]
    return LabelledImage(f"case {patient}", f"patient {patient}", image[flip], label[flip], {1: "spleen"})


def test_a_label_on_the_other_side_than_in_other_patients_is_found():
    """Breaks if a small organ's mirrored label teaches the wrong side."""
    good = [small(n) for n in range(12)]
    assert check_labels(good) == (good, [])
    bad = replace(good[3], label=good[3].label[:, ::-1])
    kept, findings = check_labels([*good[:3], bad, *good[4:]])
    assert bad not in kept
    assert [(f.case, f.rule) for f in findings] == [("case 3", "moved")]
    assert "other patients" in findings[0].reason
    assert check_label(bad) is None  # by itself it could be


def test_few_patients_say_nothing_and_a_mirrored_picture_is_no_mirrored_label():
    """Breaks if two patients' habits condemn a third's, or a picture that was stored the other way round is refused."""
    few = [small(n) for n in range(6)]
    bad = replace(few[0], label=few[0].label[:, ::-1])
    assert check_labels([bad, *few[1:]])[1] == []
    items = [small(n, mirrored_picture=n == 5) for n in range(12)]
    assert check_labels(items) == (items, [])
