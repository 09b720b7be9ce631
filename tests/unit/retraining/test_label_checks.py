"""Bad labels are found, good ones stay."""

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
