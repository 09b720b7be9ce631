"""Reading an index.json layout."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from imis_net.errors import DatasetError
from imis_net.training.dataset import read_index


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


@pytest.mark.parametrize("content", [None, "not json", '{"something": 1}', '{"cases": []}'])
def test_no_usable_index_is_an_error(tmp_path, content):
    """Breaks if training starts on nothing."""
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(DatasetError):
        read_index(tmp_path, ["train"])
