"""Reading an index.json layout."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from imis_net.errors import DatasetError
from imis_net.training.dataset import Imed361m, OnDemand, read_imed361m, read_index


def write_case(root, name, mask_shape=(32, 40), subset="train", patient="1"):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 40), np.uint8)).save(root / f"{name}.png")
    mask = np.zeros(mask_shape, np.uint8)
    mask[5:15, 10:30] = 255
    Image.fromarray(mask).save(root / f"{name}_mask.png")
    return {
        "id": name,
        "kind": "2d",
        "image": f"{name}.png",
        "masks": [{"label": "liver", "path": f"{name}_mask.png"}],
        "subset": subset,
        "source": "a set",
        "modality": "CT",
        "patient": patient,
    }


def write_index(root, cases):
    (root / "index.json").write_text(json.dumps({"cases": cases}))


def test_records_carry_image_and_named_masks(tmp_path):
    """Breaks if a mask loses its name or its place."""
    write_index(tmp_path, [write_case(tmp_path, "a")])
    (record,) = read_index(tmp_path, ["train"])
    assert record.image.shape == (32, 40, 3)
    ((name, mask),) = record.masks()
    assert name == "liver"
    assert mask[5, 10]
    assert mask.sum() == 200


def test_an_index_names_interactive_masks_that_are_read_where_they_are_wanted(tmp_path):
    """Breaks if they get lost, lose their ids, or are read against the caller's will: their terms may differ."""
    regions = np.zeros((32, 40), np.uint16)
    regions[2:9, 3:30], regions[20:30] = 7, 300
    Image.fromarray(regions).save(tmp_path / "regions.png")
    write_index(tmp_path, [{**write_case(tmp_path, "a"), "imask": "regions.png"}, write_case(tmp_path, "b")])
    with_regions, without = read_index(tmp_path, ["train"], with_interactive_masks=True)
    np.testing.assert_array_equal(with_regions.interactive_masks, regions)
    assert without.interactive_masks is None
    assert read_index(tmp_path, ["train"])[0].interactive_masks is None


def test_broken_records_are_skipped_by_count_and_named(tmp_path, caplog):
    """Breaks if a record that cannot be used ends the run, or is replaced in silence."""
    cases = [write_case(tmp_path, "a"), write_case(tmp_path, "b", mask_shape=(9, 9)), write_case(tmp_path, "c")]
    (tmp_path / "c.png").write_bytes(b"not a picture")
    write_index(tmp_path, cases)
    with caplog.at_level(logging.WARNING):
        records = read_index(tmp_path, ["train"])
    assert [r.case for r in records] == ["a"]
    assert "b_mask.png" in caplog.text
    assert "c.png" in caplog.text
    assert "skipped 2 of 3" in caplog.text


def test_subsets_and_sources_choose(tmp_path):
    """Breaks if validation cases, or sets whose licence forbids it, come into training."""
    cases = [write_case(tmp_path, "a"), write_case(tmp_path, "b", subset="val"), write_case(tmp_path, "c", patient="2")]
    cases[2]["source"] = "MedScribble/WBC"
    write_index(tmp_path, cases)
    assert [r.case for r in read_index(tmp_path, ["train"], exclude_sources=["WBC"])] == ["a"]


@pytest.mark.parametrize(
    "content", [None, "not json", '{"something": 1}', '{"cases": []}', "[]", '{"cases": 5}', '{"cases": ["a"]}']
)
def test_no_usable_index_is_an_error(tmp_path, content):
    """Breaks if training starts on nothing."""
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DatasetError):
        read_index(tmp_path, ["train"])


def write_imed361m(root):
    """Two images of one class in the published layout; returns dataset.json's contents."""
    (root / "image").mkdir()
    (root / "label").mkdir()
    items = []
    for i in range(2):
        item = {"image": f"image/p1_{i}.png", "label": f"label/p1_{i}.(1, 8, 9).npz"}
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(root / item["image"])
        mask = np.zeros((1, 8, 9), np.uint8)
        mask[0, 2, 5:] = 1
        sparse.save_npz(root / item["label"], sparse.csr_matrix(mask.reshape(1, -1)))
        items.append(item)
    labels = {"0": "background", "1": "liver"}
    return {"labels": labels, "training": items, "modality": {"0": "ct"}, "name": "a set"}


def test_sparse_labels_come_back_in_place(tmp_path):
    """Breaks if the matrix's rows are unrolled the wrong way, or slices of one patient count as two."""
    (tmp_path / "dataset.json").write_text(json.dumps(write_imed361m(tmp_path)))
    records = read_imed361m(tmp_path, "training")
    assert {r.patient for r in records} == {"a set:p1"}
    ((name, mask),) = records[0].masks()
    assert name == "liver"
    assert np.argwhere(mask).tolist() == [[2, 5], [2, 6], [2, 7], [2, 8]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path, item: path.write_bytes(path.read_bytes()[:200]),
        lambda path, item: path.write_bytes(path.read_bytes()[:60] + b"\xff" * 60 + path.read_bytes()[120:]),
        lambda path, item: path.write_bytes(b""),
        lambda path, item: item.update(label="label"),
        lambda path, item: item.update(label=None),
        lambda path, item: item.pop("image"),
    ],
    ids=["truncated", "corrupt", "empty", "no shape in the name", "no label", "no image"],
)
def test_broken_sparse_labels_are_skipped(tmp_path, caplog, spoil):
    """Breaks if one damaged archive of thousands ends the run with zip's own error."""
    facts = write_imed361m(tmp_path)
    spoil(tmp_path / facts["training"][0]["label"], facts["training"][0])
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    with caplog.at_level(logging.WARNING):
        assert [r.case for r in read_imed361m(tmp_path, "training")] == ["p1_1"]
    assert "skipped 1 of 2" in caplog.text
    assert "p1_0" in caplog.text


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND"])
@pytest.mark.parametrize("damage", [b"\xd4HKQ", b"IDAQ", b"iEND", b"\0\0\0\0"])
def test_any_damage_to_a_picture_is_a_skipped_record(tmp_path, chunk, damage):
    """Breaks if a damaged picture raises something that ends the run, as Pillow's SyntaxError did."""
    write_index(tmp_path, [write_case(tmp_path, "a"), write_case(tmp_path, "b")])
    path = tmp_path / "a.png"
    path.write_bytes(path.read_bytes().replace(chunk, damage))
    assert "b" in [r.case for r in read_index(tmp_path, ["train"])]


@pytest.mark.parametrize(("ids", "expected"), [([-1, 0, 5], [0, 1, 2]), ([0, 3, 5], [1, 2, 3])])
def test_interactive_masks_are_a_partition_from_one(tmp_path, ids, expected):
    """Breaks if ignored pixels become a target, or the published ids, which have gaps, run into one another."""
    facts = write_imed361m(tmp_path)
    for item in facts["training"]:
        item["imask"] = "imask.npy"
    np.save(tmp_path / "imask.npy", np.repeat(ids, 24).reshape(8, 9, 1))
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    (record, _) = Imed361m(tmp_path, "training", with_interactive_masks=True)
    assert np.unique(record.interactive_masks).tolist() == expected
    assert Imed361m(tmp_path, "training")[0].interactive_masks is None


def test_a_record_is_read_when_asked_for(tmp_path):
    """Breaks if millions of images are read before the first step, or a broken one does not say which it is."""
    facts = write_imed361m(tmp_path)
    facts["training"][1]["imask"] = "imask.npy"
    np.save(tmp_path / "imask.npy", np.zeros((3, 3, 1), np.int64))
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    records = OnDemand(Imed361m, root=tmp_path, split="training", with_interactive_masks=True)
    (tmp_path / facts["training"][0]["image"]).unlink()
    assert len(records) == 2
    assert records.patients == {"a set:p1"}
    with pytest.raises(DatasetError, match=r"image/p1_0.png: .*No such file"):
        records[0]
    with pytest.raises(DatasetError, match=r"image/p1_1.png: imask.npy: expected interactive masks of \(8, 9\)"):
        records[1]
