"""MONAI's own tools on the bundle, from the repository and from an unzipped copy elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

import imis_net
from imis_net.networks.build import BUILDERS, COMPACT_IMAGE_SIZE
from imis_net.segmenter import load_segmenter

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "imis_net"
SAMPLES = ROOT / "apps" / "imis" / "sample_studies"
REFERENCE = SAMPLES / "reference"
METADATA = json.loads((BUNDLE / "configs" / "metadata.json").read_text())

SPECIFIED = [
    *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("task", "description", "authors", "copyright", "network_data_format"),
]
"""What MONAI's bundle specification requires of metadata.json; its schema file itself must be downloaded."""


def monai_bundle(cwd: Path, bundle: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "monai.bundle", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(bundle)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory) -> Path:
    """The bundle as a user gets it: zipped, and unzipped somewhere else."""
    folder = tmp_path_factory.mktemp("elsewhere")
    archive = shutil.make_archive(str(folder / "imis_net"), "zip", BUNDLE.parent, BUNDLE.name)
    shutil.unpack_archive(archive, folder)
    return folder / "imis_net"


def test_versions_agree():
    """Breaks if a release forgets one of the places that name its version."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert METADATA["version"] == imis_net.__version__
    assert f'version = "{imis_net.__version__}"' in project
    assert changelog.split("## ")[1].startswith(imis_net.__version__)
    assert METADATA["version"] in METADATA["changelog"]


def test_metadata_shows_the_networks_shapes():
    """Breaks if the default network's frame or channels change without the metadata."""
    image = METADATA["network_data_format"]["inputs"]["image"]
    assert image["spatial_shape"] == [COMPACT_IMAGE_SIZE, COMPACT_IMAGE_SIZE]
    assert image["num_channels"] == 3
    assert BUILDERS["imis_net_compact"]().image_size == COMPACT_IMAGE_SIZE


def test_verify_metadata(tmp_path):
    """Breaks if metadata.json loses a field of MONAI's specification. The schema stands beside it, so that the tool
    does not go to the network for it."""
    schema = {"type": "object", "required": SPECIFIED, "properties": {"network_data_format": {"type": "object"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    done = monai_bundle(
        ROOT,
        BUNDLE,
        "verify_metadata",
        "--meta_file",
        BUNDLE / "configs" / "metadata.json",
        "--filepath",
        tmp_path / "schema.json",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "metadata is verified with no error" in done.stdout + done.stderr


def test_verify_net_in_out_from_an_unzipped_copy(unzipped):
    """Breaks if the bundle needs anything of the repository around it, or the network cannot run on an image alone."""
    done = monai_bundle(
        unzipped,
        unzipped,
        "verify_net_in_out",
        "--net_id",
        "network_def",
        "--meta_file",
        "configs/metadata.json",
        "--config_file",
        "configs/inference.yaml",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "verified with no error" in done.stdout + done.stderr


def test_inference_runs_on_a_real_slice_from_an_unzipped_copy(unzipped, tmp_path):
    """Breaks if the bundle alone cannot segment: a box around the aorta must find it, in the image's own grid."""
    facts = json.loads((SAMPLES / "labels.json").read_text())
    image = SAMPLES / f"{facts['example']['image']}.nii.gz"
    label = np.asarray(nib.load(REFERENCE / image.name).dataobj)[..., 0] == facts["labels"]["aorta"]
    i, j = np.nonzero(label)
    box = f"[{i.min()},{j.min()},{i.max()},{j.max()}]"
    done = monai_bundle(
        tmp_path,
        unzipped,
        "run",
        "--config_file",
        unzipped / "configs" / "inference.yaml",
        "--image",
        image,
        "--box",
        box,
        "--output_dir",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    mask = sitk.ReadImage(str(tmp_path / "out" / f"{facts['example']['image']}_mask.nrrd"))
    assert mask.GetSize() == sitk.ReadImage(str(image)).GetSize()
    found = sitk.GetArrayFromImage(mask)[0].T > 0
    assert 2 * (found & label).sum() / (found.sum() + label.sum()) > 0.7


def test_training_recipe_runs(tmp_path):
    """Breaks if compact.yaml names a module, class or field that is not there, or if a stage cannot take a step. In a
    process of its own: a module that another test has imported would hide an import that MONAI cannot make."""
    write_training_data(tmp_path)
    done = monai_bundle(
        tmp_path,
        BUNDLE,
        "run",
        "--config_file",
        BUNDLE / "configs" / "compact.yaml",
        "--data_root",
        tmp_path,
        "--output_dir",
        tmp_path / "out",
        "--stages#1#num_steps",
        1,
        "--stages#1#num_images",
        2,
        "--stages#2#num_steps",
        1,
        "--stages#2#num_images",
        2,
        "--trainer#stages",
        "$@stages[1:]",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    entries = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in entries] == [(0, 1), (1, 1)]
    load_segmenter("imis_net_compact", tmp_path / "out" / "last.safetensors")


def write_training_data(root: Path) -> None:
    """An index.json of two sample slices of two patients, one to train on and one to validate on."""
    names = {v: k for k, v in json.loads((SAMPLES / "labels.json").read_text())["labels"].items()}
    cases = []
    for case, subset in (("abdomen_ct_3", "train"), ("abdomen_ct_1", "val")):
        image, label = (np.asarray(nib.load(f / f"{case}.nii.gz").dataobj)[..., 0].T for f in (SAMPLES, REFERENCE))
        Image.fromarray(image.astype(np.uint8)).save(root / f"{case}.png")
        masks = []
        for value in np.unique(label[label > 0]):
            path = f"{case}_{value}.png"
            Image.fromarray((label == value).astype(np.uint8)).save(root / path)
            masks.append({"label": names[int(value)], "path": path})
        facts = {"id": case, "kind": "2d", "image": f"{case}.png", "masks": masks, "subset": subset}
        cases.append({**facts, "patient": case, "source": "BTCV", "modality": "CT"})
    (root / "index.json").write_text(json.dumps({"cases": cases}))
