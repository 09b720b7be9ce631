"""Labels on a real server: two annotators, a kill, and every version over HTTP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
from running_server import APP, RunningServer, running_server

SAMPLES = APP / "sample_studies"
CT = "abdomen_ct_1"


def _save(server: RunningServer, file: Path, user: str, **params: object) -> requests.Response:
    with file.open("rb") as content:
        return requests.put(
            f"{server.url}/datastore/label",
            params={"image": CT, "tag": "final"},
            data={"params": json.dumps({"client_id": user, **params})},
            files={"label": (file.name, content)},
            timeout=60,
        )


def _written(path: Path, shift: int = 0) -> Path:
    reference = nib.load(SAMPLES / "reference" / f"{CT}.nii.gz")
    mask = np.roll(np.asarray(reference.dataobj).astype(np.uint8), shift, axis=0)
    nib.save(nib.Nifti1Image(mask, nib.load(SAMPLES / f"{CT}.nii.gz").affine), path)
    return path


def test_both_annotators_labels_outlive_a_kill_and_can_be_compared_and_restored(tmp_path: Path) -> None:
    """Breaks if a save erases another's, is lost by a kill, is kept although it does not fit, or hides a conflict."""
    studies = tmp_path / "studies"
    shutil.copytree(SAMPLES, studies)
    first_file, second_file = _written(tmp_path / "one.nii.gz"), _written(tmp_path / "two.nii.gz", shift=3)
    with running_server(tmp_path, studies) as server:
        first = _save(server, first_file, "ann").json()
        second = _save(server, second_file, "bob", parent=None).json()
        assert (first["conflict"], second["conflict"]) == (False, True)
        flat = tmp_path / "small.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 1), np.uint8), np.eye(4)), flat)
        refused = _save(server, flat, "ann")
        assert (refused.status_code, refused.json()["detail"][:32]) == (422, "label: expected the image's grid")
        assert _save(server, first_file, "ann", parent="one").status_code == 422
        server.kill()
    with running_server(tmp_path, studies) as server:
        url = f"{server.url}/imis/labels/{CT}"
        versions = requests.get(url, timeout=30).json()["versions"]
        assert [(v["author"], v["parent"]) for v in versions] == [("ann", None), ("bob", None)]
        assert all(v["facts"]["weights"] for v in versions)
        assert requests.get(f"{url}/{first['version']}", timeout=30).content == first_file.read_bytes()
        changes = requests.get(f"{url}/{second['version']}/diff?against={first['version']}", timeout=30).json()[
            "labels"
        ]
        assert changes
        assert all(c["added"] == c["removed"] > 0 and 0 < c["dice"] < 1 for c in changes.values())
        restored = requests.post(f"{url}/{first['version']}/restore", timeout=30).json()
        assert (restored["parent"], restored["facts"]["restored_from"]) == (second["version"], first["version"])
        shown = requests.get(f"{server.url}/datastore/label?label={CT}&tag=final", timeout=30).content
        assert shown == first_file.read_bytes()
        assert requests.get(f"{url}/99", timeout=30).status_code == 404
