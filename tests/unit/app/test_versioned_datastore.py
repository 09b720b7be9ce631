"""MONAI Label's data store as a view of the label store, after everything that can happen to a disk."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lib import label_store
from lib.label_store import LabelStore
from lib.versioned_datastore import INDEX, VersionedLocalDatastore


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.int16), np.eye(4)), folder / "case.nii.gz")
    return folder


def opened(studies: Path) -> VersionedLocalDatastore:
    store = LabelStore(studies.parent / "labels")
    return VersionedLocalDatastore(store, str(studies), extensions=("*.nii.gz", "*.nii"))


def label(folder: Path, value: int) -> str:
    nib.save(nib.Nifti1Image(np.full((4, 4, 2), value, np.uint8), np.eye(4)), folder / "upload.nii.gz")
    return str(folder / "upload.nii.gz")


def shown(datastore: VersionedLocalDatastore) -> int:
    return int(nib.load(datastore.get_label_uri("case", "final")).get_fdata().max())


def test_the_newest_save_is_shown_and_the_older_one_is_kept(studies: Path, tmp_path: Path) -> None:
    """Breaks if the second annotator's save erases the first one's."""
    datastore = opened(studies)
    facts: dict = {"client_id": "ann", "label_info": [{"name": "liver", "idx": 1}]}
    datastore.save_label("case", label(tmp_path, 1), "final", facts)
    datastore.save_label("case", label(tmp_path, 2), "final", {"author": "bob", "parent": None})
    first, second = datastore.label_store.versions("case")
    assert (first.author, second.author, facts["version"]) == ("ann", "bob", first.id)
    assert first.facts["label_info"] == [{"name": "liver", "idx": 1}]
    assert shown(datastore) == 2
    assert datastore.get_label_info("case", "final")["version"] == second.id
    (tmp_path / "first.nii.gz").write_bytes(datastore.label_store.read(first))
    assert nib.load(tmp_path / "first.nii.gz").get_fdata().max() == 1


@pytest.mark.parametrize("damage", ["torn index", "empty index", "lost file", "torn file", "lost index"])
def test_a_damaged_store_opens_with_every_label(studies: Path, tmp_path: Path, damage: str) -> None:
    """Breaks if a server that died while it saved does not start any more, or starts without a label."""
    datastore = opened(studies)
    datastore.save_label("case", label(tmp_path, 2), "final", {"client_id": "ann"})
    index, file = studies / INDEX, Path(datastore.get_label_uri("case", "final"))
    if damage.endswith("index"):
        content = index.read_text()
        index.write_text({"torn index": content[: len(content) // 2], "empty index": "", "lost index": "{}"}[damage])
    elif damage == "lost file":
        file.unlink()
    else:
        file.write_bytes(b"")
    again = opened(studies)
    assert shown(again) == 2
    assert again.get_label_info("case", "final")["client_id"] == "ann"
    assert json.loads(index.read_text())["objects"]["case"]["labels"]["final"]


def test_a_full_disk_changes_nothing(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a save that was refused is shown, or the one before is gone."""
    datastore = opened(studies)
    datastore.save_label("case", label(tmp_path, 1), "final", {})

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(label_store, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        datastore.save_label("case", label(tmp_path, 2), "final", {})
    assert shown(datastore) == 1
    assert len(opened(studies).label_store.versions("case")) == 1


def test_a_removed_label_stays_removed_and_can_be_had_back(studies: Path, tmp_path: Path) -> None:
    """Breaks if a restart brings back what somebody removed, or a removal destroys."""
    datastore = opened(studies)
    datastore.save_label("case", label(tmp_path, 1), "final", {})
    datastore.remove_label("case", "final")
    again = opened(studies)
    assert not again.get_labels_by_image_id("case")
    saved, removal = again.label_store.versions("case")
    assert removal.facts["is_removed"]
    again.show(saved)
    assert shown(again) == 1
