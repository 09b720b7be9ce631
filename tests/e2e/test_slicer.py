"""3D Slicer's own sequence of requests, made by MONAI Label's client class, which its module uses."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from running_server import running_server

SHAPE, CENTRE, RADII = (96, 88, 12), (38, 50, 5), (16, 12, 4)


def _study(path: Path) -> np.ndarray:
    """A CT as scanners store it, x and y against the patient's axes; truth bool [I, J, K]."""
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    truth = sum(((v - c) / r) ** 2 for v, c, r in zip((i, j, k), CENTRE, RADII, strict=True)) < 1
    voxels = np.where(truth, 170, 20) + np.random.default_rng(0).normal(0, 6, SHAPE)
    voxels[0, 0, 0] = -1000
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([-1.5, -1.5, 4.0, 1.0])), path)
    return truth


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_next_sample_click_roi_propagate_submit(tmp_path: Path) -> None:
    """Breaks if a swapped roi is taken as empty, or a mask leaves the image's grid."""
    studies = tmp_path / "studies"
    studies.mkdir()
    truth = _study(studies / "case.nii.gz")
    with running_server(tmp_path, studies) as server:
        client = MONAILabelClient(server.url, str(tmp_path), client_id="user-test")
        assert not client.auth_enabled()
        assert {"imis", "imis_text", "imis_propagate"} <= set(client.info()["models"])
        sample = client.next_sample("random", {})
        assert sample["id"] == "case"
        options = {"text": "", "slice": "", "window": "", "prompt": ["points", "box"]}
        common = {"label": "liver", "background": [], **options, "result_extension": ".nrrd", "result_dtype": "uint8"}

        def infer(model: str, **prompts: object) -> np.ndarray:
            file, params = client.infer(model, "case", {**common, "foreground": [], **prompts})
            assert params["label_names"] == {"liver": 1}
            image = sitk.ReadImage(file)
            reference = sitk.ReadImage(str(studies / "case.nii.gz"))
            assert np.allclose(image.GetOrigin(), reference.GetOrigin())
            assert np.allclose(image.GetDirection(), reference.GetDirection())
            return sitk.GetArrayFromImage(image).T > 0

        assert infer("imis", foreground=[list(CENTRE)])[CENTRE]
        low, high = np.argwhere(truth[..., CENTRE[2]]).min(0), np.argwhere(truth[..., CENTRE[2]]).max(0)
        # x and y run against the patient's axes, so Slicer's minimum and maximum arrive swapped.
        roi = [high[0], low[0], high[1], low[1], CENTRE[2], CENTRE[2]]
        boxed = infer("imis", roi=[int(v) for v in roi])
        assert _dice(boxed[..., CENTRE[2]], truth[..., CENTRE[2]]) > 0.8
        assert _dice(infer("imis_propagate", roi=[int(v) for v in roi]), truth) > 0.75
        label = tmp_path / "label.nii.gz"
        nib.save(nib.Nifti1Image(truth.astype(np.uint8), nib.load(studies / "case.nii.gz").affine), label)
        client.save_label("case", str(label), "final", {"label_info": [{"name": "liver", "idx": 1}], "model": "imis"})
        assert client.info()["datastore"]["completed"] == 1
