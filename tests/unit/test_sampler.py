"""Views and examples: image and targets stay aligned, names stay true."""

from dataclasses import replace

import numpy as np
import pytest

from imis_net.errors import DatasetError
from imis_net.training.augmentation import View, random_intensity, random_view, resize_labels, synthetic_contrast
from imis_net.training.dataset import Record
from imis_net.training.sampler import Sampler, canonical_name


def record(names=("liver", "kidney left")) -> Record:
    """Bright squares on a dark ground, one label each."""
    labels = np.zeros((90, 120), np.uint16)
    labels[10:40, 10:50] = 1
    labels[50:80, 70:110] = 2
    image = np.where(labels[..., None] > 0, 200, 20).repeat(3, axis=2).astype(np.uint8)
    return Record("case", "patient", "a set", "CT", image, ((labels, {1: names[0], 2: names[1]}),))


def sampler(**options) -> Sampler:
    settings = {"region_probability": 0.0, "synthetic_probability": 0.0, **options}
    return Sampler([record()], 64, 2, {"liver", "left kidney"}, **settings)


@pytest.mark.parametrize("seed", range(8))
def test_targets_lie_on_what_they_show(seed):
    """Breaks if a crop, flip or resize moves the image and its targets apart."""
    chosen = record()
    view = random_view(chosen.image.shape, chosen.targets[0][0] > 0, 0.5, 1.4, 1.0, np.random.default_rng(seed))
    image, labels = view.apply(chosen.image), view.apply(chosen.targets[0][0])
    assert image.shape[:2] == labels.shape == (view.height, view.width)
    assert labels.any()
    assert np.array_equal(image[..., 0] == 200, labels > 0)


def test_a_view_beyond_the_image_is_padded():
    """Breaks if a wide view is cut, so that its side is no longer what it says."""
    crop = View(-5, -7, 20, 20).apply(np.ones((10, 10)))
    assert crop.shape == (20, 20)
    assert crop.sum() == 100
    assert crop[5, 7] == 1
    assert crop[4, 7] == 0


def test_left_is_not_named_left_in_a_mirror():
    """Breaks if a flipped view keeps "left kidney" as its text."""
    rng = np.random.default_rng(0)
    flipped = [sampler(flip_probability=1.0).draw(rng).texts for _ in range(20)]
    straight = [sampler(flip_probability=0.0, min_scale=1.0).draw(rng).texts for _ in range(20)]
    assert any(t is None for t in flipped)
    assert any(t and "left kidney" in t for t in straight)


def test_coverage_tells_what_is_there_and_what_is_not():
    """Breaks if a partly labelled source is said to lack what it does not label, a complete one's absent names are
    forgotten, or a mirrored, repainted or unnamed view keeps names."""
    records = [record(), replace(record(("spleen", "")), case="other")]

    def drawn(**options):
        settings = {"region_probability": 0.0, "synthetic_probability": 0.0, "flip_probability": 0.0, "min_scale": 1.0}
        chosen = Sampler(records, 64, 2, ("liver", "left kidney", "spleen"), **{**settings, **options})
        return [chosen.draw(np.random.default_rng(i)).coverage for i in range(12)]

    for shares in drawn(complete=["a set"]):
        assert set(shares) == {"liver", "left kidney", "spleen"}
        present = {name for name, share in shares.items() if share.any()}
        assert present in ({"spleen"}, {"liver", "left kidney"}, {"liver"}, {"left kidney"})
    assert {frozenset(s) for s in drawn()} <= {
        frozenset(n) for n in (["spleen"], ["liver", "left kidney"], ["liver"], ["left kidney"])
    }
    assert not any(drawn(synthetic_probability=1.0))
    assert not any(drawn(region_probability=1.0))
    assert not all(drawn(flip_probability=1.0))


def test_regions_have_no_names():
    """Breaks if an unnamed region is prompted by text."""
    example = sampler(region_probability=1.0).draw(np.random.default_rng(0))
    assert example.texts is None
    assert example.targets.any((1, 2)).all()


def test_same_generator_same_example():
    """Breaks if some randomness does not come from the generator: a run could not be repeated."""
    a, b = (sampler().draw(np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.targets, b.targets)


@pytest.mark.parametrize("seed", range(5))
def test_intensities_stay_in_range(seed):
    """Breaks if an augmentation wraps around beyond 0..255 or changes the shape."""
    image = np.random.default_rng(seed).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    changed = random_intensity(image, np.random.default_rng(seed))
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8


def test_synthetic_contrast_follows_the_labels():
    """Breaks if the painted image no longer shows the targets' borders."""
    labels = resize_labels(record().targets[0][0], 64, 64)
    painted = synthetic_contrast(labels, np.zeros((64, 64, 3), np.float32), np.random.default_rng(1))[..., 0]
    means = [painted[labels == v].mean() for v in (0, 1, 2)]
    assert len({round(m) for m in means}) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kidney right", "right kidney"),
        ("Adrenal_gland-left", "left adrenal gland"),
        ("liver", "liver"),
        ("left ventricle myocardium", "left ventricle myocardium"),
    ],
)
def test_names_are_spelt_as_the_categories_are(name, expected):
    """Breaks if data sets' own spellings of a side become targets of their own."""
    assert canonical_name(name) == expected


def test_nothing_to_draw_is_an_error_not_a_loop():
    """Breaks if records without a usable target keep the training waiting for ever."""
    black = Record("black", "p", "s", "CT", np.zeros((40, 40, 3), np.uint8), ())
    with pytest.raises(DatasetError, match="no target in"):
        Sampler([black], 64, 1, ()).draw(np.random.default_rng(0))
    with pytest.raises(DatasetError, match="nothing to draw from"):
        Sampler([], 64, 1, ())
    with pytest.raises(DatasetError, match="nothing to draw from"):
        Sampler([black], 64, 1, (), weights={"s": 0.0})


def test_records_of_one_name_keep_their_own_regions():
    """Breaks if two sets number their cases alike and one's regions are laid over the other's image."""
    small = record()
    large = replace(small, source="another set", image=small.image.repeat(2, axis=0))
    both = Sampler([small, large], 64, 2, ())
    for chosen in (small, large):
        assert both._region_map(chosen).shape == chosen.image.shape[:2]


def test_tissues_are_drawn_where_there_are_enough_grey_values():
    """Breaks if tissue targets are split into regions, or a picture of two grey values ends the training."""
    example = sampler(region_probability=1.0, tissue_probability=1.0).draw(np.random.default_rng(0))
    assert example.texts is None
    assert example.targets.any((1, 2)).all()
    whole = sampler(tissue_probability=1.0)._region_map(record(), 2)
    assert len(np.unique(whole[record().targets[0][0] > 0])) == 1, "both squares are as bright"


def test_draws_follow_the_weights():
    """Breaks if a source left out by a weight of 0 is drawn, or targets are fewer than asked for."""
    kept = record()
    left_out = replace(kept, source="left out", targets=((kept.targets[0][0], {1: "spleen", 2: "spleen"}),))
    drawing = Sampler(
        [kept, left_out],
        64,
        3,
        {"liver", "left kidney", "spleen"},
        weights={"left": 0.0},
        region_probability=0.0,
        flip_probability=0.0,
        min_scale=1.0,
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        example = drawing.draw(rng)
        assert example.targets.shape == (3, 64, 64)
        assert "spleen" not in example.texts


def test_a_coarse_image_says_how_large_its_pixels_are():
    """Breaks if an enlarged image is prompted as if every model pixel were an annotator's."""
    rng = np.random.default_rng(0)
    fine = sampler().draw(rng)
    coarse = [sampler(coarse_probability=1.0, min_pixels=1).draw(rng) for _ in range(20)]
    assert fine.pixel_size == (1.0, 1.0)
    assert all(x == y >= 1.0 for x, y in (e.pixel_size for e in coarse))
    assert max(e.pixel_size[0] for e in coarse) > 1.2


def test_a_coarse_image_is_enlarged_as_little_as_in_serving(monkeypatch):
    """Breaks if training stretches small images that serving leaves small, or moves their targets off them."""
    monkeypatch.setattr(Sampler, "_resolution", lambda self, rng: (64, 32))
    chosen = Sampler([record()], 512, 2, (), region_probability=0.0, synthetic_probability=0.0, max_enlargement=2.0)
    for seed in range(10):
        example = chosen.draw(np.random.default_rng(seed))
        assert example.pixel_size == (2.0, 2.0)
        assert example.targets.any((1, 2)).all()
        assert not example.targets[:, 128:].any()
        assert not example.targets[:, :, 64:].any()
        bright, target = example.image[:128, :64, 0].astype(float), example.targets.any(0)[:128, :64]
        assert abs(bright[target].mean() - bright[~target].mean()) > 20


def test_specks_of_a_coarse_image_are_no_targets():
    """Breaks if what would be a few pixels of the imagined image counts by its many pixels in the model frame."""
    labels = np.zeros((128, 128), np.uint16)
    labels[60:64, 60:64] = 1
    speck = Record("c", "p", "s", "CT", np.zeros((128, 128, 3), np.uint8), ((labels, {1: "liver"}),))
    settings = {"region_probability": 0.0, "synthetic_probability": 0.0, "min_scale": 1.0, "max_scale": 1.001}
    rng = np.random.default_rng(0)
    assert Sampler([speck], 256, 1, (), **settings).draw(rng).targets.any()
    coarse = Sampler([speck], 256, 1, (), coarse_probability=1.0, **settings)
    drawn = [coarse._from_record(speck, rng) for _ in range(50)]
    assert any(e is None for e in drawn)
    assert all(e.pixel_size[0] < 2.0 for e in drawn if e is not None)


def test_scenes_come_at_their_share():
    """Breaks if drawn scenes are never, or always, drawn."""
    assert all(
        e.texts is None for e in (sampler(scene_probability=1.0).draw(np.random.default_rng(i)) for i in range(5))
    )
    assert sampler(scene_probability=0.0, flip_probability=0.0, min_scale=1.0).draw(np.random.default_rng(0)).texts
