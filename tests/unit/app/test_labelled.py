"""lib.labelled: labels of MONAI Label's own datastore as slices, with patients and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from monailabel.datastore.local import LocalDatastore

from imis_net.retraining.cycle import checked
from lib.labelled import fingerprints, read_labels, target_names


def _write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> LocalDatastore:
    """Two volumes of 12 x 10 x 8 voxels (i, j, k) and a datastore on them."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        _write(tmp_path / "studies" / f"{name}.nii.gz", rng.integers(0, 255, (8, 10, 12), dtype=np.uint8))
    return LocalDatastore(str(tmp_path / "studies"))


def _save(store: LocalDatastore, folder: Path, image: str, label: np.ndarray, tag: str = "final", **info) -> None:
    store.save_label(image, str(_write(folder / "label.nii.gz", label.astype(np.uint8))), tag, info)


def test_a_slice_comes_along_the_axis_that_it_was_drawn_across(store: LocalDatastore, tmp_path: Path) -> None:
    """Breaks if a mask of one sagittal slice is learnt as hundred lines, or image and label are turned differently."""
    label = np.zeros((8, 10, 12), np.uint8)  # k, j, i
    label[2:6, 3:8, 7] = 4
    _save(store, tmp_path, "a", label, label_info=[{"name": "liver", "idx": 4}])
    (record,) = read_labels(store).learning
    label_map, names = record.targets[0]
    assert record.case == "a_0_7"
    assert np.array_equal(label_map > 0, label[:, :, 7] > 0)
    assert record.image.shape[:2] == label_map.shape
    assert names == {4: "liver"}


def test_tags_decide_what_learns_and_what_judges(store: LocalDatastore, tmp_path: Path) -> None:
    """Breaks if a reference is learnt from, or the model's own masks (tag original) are taken for labels."""
    label = np.zeros((8, 10, 12), np.uint8)
    label[3, 2:7, 2:9] = 1
    for image, tag in (("a", "final"), ("a", "reference"), ("b", "final"), ("b", "original")):
        _save(store, tmp_path, image, label, tag)
    labels = read_labels(store)
    assert [r.case for r in labels.learning] == ["b_2_3"]
    assert [r.case for r in labels.reference] == ["a_2_3"]
    assert {r.patient for r in (*labels.learning, *labels.reference)} == {"a", "b"}


def test_patients_are_told_by_the_upload(store: LocalDatastore, tmp_path: Path) -> None:
    """Breaks if two images of one patient could stand in two splits."""
    label = np.zeros((8, 10, 12), np.uint8)
    label[3, 2:7, 2:9] = 1
    for image in ("a", "b"):
        store.update_image_info(image, {"patient": "one"})
        _save(store, tmp_path, image, label)
    assert {r.patient for r in read_labels(store).learning} == {"one"}


def test_bad_files_are_found_and_named(store: LocalDatastore, tmp_path: Path) -> None:
    """Breaks if one empty, wrong-sized or broken label stops the others, or is learnt from."""
    _save(store, tmp_path, "a", np.zeros((8, 10, 12)))
    _save(store, tmp_path, "b", np.ones((3, 10, 7)))
    assert {f.case: f.rule for f in checked(read_labels(store).learning)[1]} == {"a_2_4": "empty", "b_2_0": "size"}
    Path(store.get_label_uri("b", "final")).write_bytes(b"torn")
    labels = read_labels(store)
    assert [(f.case, f.rule) for f in labels.unreadable] == [("b", "unreadable")]
    assert len(labels.learning) == 1


def test_a_changed_label_has_another_fingerprint(store: LocalDatastore, tmp_path: Path) -> None:
    """Breaks if corrections are not counted as new, or looking twice makes labels new."""
    _save(store, tmp_path, "a", np.zeros((8, 10, 12)))
    before = fingerprints(store)
    assert fingerprints(store) == before
    _save(store, tmp_path, "a", np.zeros((8, 10, 12)))
    assert fingerprints(store) != before
    assert set(before) == {"a"}


@pytest.mark.parametrize(
    ("info", "names"),
    [
        ({"label_info": [{"name": "liver", "idx": 1}, {"name": "aorta", "idx": 2}]}, {1: "liver", 2: "aorta"}),
        ({"label_info": [{"name": "liver", "idx": 2}, {"name": "aorta", "idx": 3}]}, {1: "liver", 2: "aorta"}),
        ({"params": {"label_names": {"liver": 1, "aorta": 2}}}, {1: "liver", 2: "aorta"}),
        ({"label_info": [{"name": "liver", "idx": 7}]}, {}),
        ({}, {}),
        ({"label_info": [None, {"idx": 1}]}, {}),
        ({"label_info": 5, "params": "liver"}, {}),
    ],
)
def test_names_by_index_in_order_or_not_at_all(info: dict, names: dict) -> None:
    """Breaks if Slicer's shifted indices give organs each other's names, or a guess is made."""
    assert target_names(info, [1, 2]) == names
