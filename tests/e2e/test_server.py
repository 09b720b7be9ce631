"""A real server on the sample studies, asked over HTTP as the viewers ask it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient
from PIL import Image
from pydicom.data import get_testdata_file
from requests_toolbelt.multipart.decoder import MultipartDecoder
from running_server import APP, running_server

SAMPLES = APP / "sample_studies"
FACTS = json.loads((SAMPLES / "labels.json").read_text())
CT, ORGAN = FACTS["example"]["image"], FACTS["example"]["label"]
CLICK = FACTS["images"][CT]["clicks"][ORGAN]


@dataclass(frozen=True)
class Server:
    url: str
    studies: Path
    log: Path

    def post(self, params: object, image: str = CT, model: str = "imis", **query: str) -> requests.Response:
        text = params if isinstance(params, str) else json.dumps(params)
        query = {"image": image} | query
        return requests.post(f"{self.url}/infer/{model}", params=query, data={"params": text}, timeout=120)

    def infer(self, params: object, image: str = CT, model: str = "imis") -> tuple[np.ndarray, dict]:
        """Mask [K, J, I] and params, as Slicer reads them."""
        answer = self.post(params, image, model)
        assert answer.status_code == 200, answer.text
        parts = {
            p.headers[b"Content-Disposition"].split(b'name="')[1].split(b'"')[0]: p.content
            for p in MultipartDecoder.from_response(answer).parts
        }
        return _read(parts[b"image"], self.log.parent), json.loads(parts[b"params"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    studies = folder / "studies"
    shutil.copytree(SAMPLES, studies)
    slices = [
        sitk.GetArrayFromImage(sitk.ReadImage(SAMPLES / f"{n}.nii.gz"))[0] for n in ("abdomen_ct_2", CT, "abdomen_ct_3")
    ]
    sitk.WriteImage(sitk.GetImageFromArray(np.stack(slices)), studies / "three_slices.nii.gz")
    Image.fromarray(np.stack([slices[1][:400]] * 3, axis=-1)).save(studies / "photo.png")
    (studies / "truncated.nii.gz").write_bytes((SAMPLES / f"{CT}.nii.gz").read_bytes()[:5000])
    (studies / "no_image.png").write_text("this is not a picture")
    with running_server(folder, studies) as running:
        yield Server(running.url, studies, running.log)


def _read(nrrd: bytes, folder: Path) -> np.ndarray:
    path = folder / "answer.nrrd"
    path.write_bytes(nrrd)
    return sitk.GetArrayFromImage(sitk.ReadImage(path))


def _reference(image: str, label: str) -> np.ndarray:
    values = sitk.GetArrayFromImage(sitk.ReadImage(SAMPLES / "reference" / f"{image}.nii.gz"))
    return values == FACTS["labels"][label]


def _dice(mask: np.ndarray, reference: np.ndarray) -> float:
    return 2 * float((mask & reference).sum()) / float(mask.sum() + reference.sum())


def test_info_shows_both_models_as_the_viewers_need_them(server: Server) -> None:
    """Breaks when a type, the dimension or an option changes, so that a viewer's panel or setting disappears."""
    info = requests.get(f"{server.url}/info/", timeout=30).json()
    models = info["models"]
    types = {"imis": "deepgrow", "imis_text": "segmentation", "imis_propagate": "deepgrow"}
    assert {name: m["type"] for name, m in models.items()} == types
    assert all(m["dimension"] == 3 for m in models.values())
    assert models["imis"]["config"] == {"text": "", "slice": "", "window": "", "prompt": ["points", "box"]}
    assert isinstance(info["labels"], list)
    assert "liver" in info["labels"]
    assert models["imis_text"]["labels"]["spleen"] == 1
    assert info["datastore"]["completed"] == 1
    assert info["datastore"]["total"] == 8


def test_one_click_segments_the_sample_on_its_own_grid(server: Server) -> None:
    """Breaks when the model or its coordinates are wrong, or when the mask's header differs from the image's."""
    answer = server.post({"foreground": [CLICK]}, output="image")
    assert answer.status_code == 200
    path = server.log.parent / "mask.nrrd"
    path.write_bytes(answer.content)
    mask, image = sitk.ReadImage(path), sitk.ReadImage(SAMPLES / f"{CT}.nii.gz")
    assert mask.GetSize() == image.GetSize()
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert np.allclose(mask.GetOrigin(), image.GetOrigin())
    assert np.allclose(mask.GetSpacing(), image.GetSpacing())
    assert np.allclose(mask.GetDirection(), image.GetDirection())
    assert _dice(sitk.GetArrayFromImage(mask) > 0, _reference(CT, ORGAN)) >= 0.80


def test_the_second_click_does_not_encode_again(server: Server) -> None:
    """Breaks when the embedding cache is keyed by something that changes from click to click."""
    _, first = server.infer({"foreground": [CLICK], "window": "100,200"})
    _, second = server.infer({"foreground": [CLICK], "background": [[300, 300, 0]], "window": "100,200"})
    assert (first["cache_hit"], second["cache_hit"]) == (False, True)
    assert second["latencies_ms"]["encode"] < first["latencies_ms"]["encode"]
    assert set(second["latencies_ms"]) == {"read", "slice", "encode", "predict", "write", "total"}


def test_the_answer_names_and_rates_its_targets(server: Server) -> None:
    """Breaks when what Slicer colours segments by, or the predicted IoU, is left out of params."""
    mask, params = server.infer({"label": "my liver", "foreground": [CLICK], "client_id": "user-xyz"})
    assert params["label_names"] == {"my liver": 1}
    assert set(np.unique(mask)) == {0, 1}
    assert 0 <= params["iou_prediction"] <= 1
    assert params["slice"] == 0
    assert len(params["weights"]) >= 16


def test_box_dialects_give_one_mask(server: Server) -> None:
    """Breaks when Slicer's swapped corners, a typed box or two clicked corners mean different pixels."""
    rows, columns = np.nonzero(_reference(CT, ORGAN)[0])
    x0, x1, y0, y1 = (int(v) for v in (columns.min(), columns.max(), rows.min(), rows.max()))
    mask, _ = server.infer({"roi": [x1, x0, y1, y0, 0, 0], "foreground": [], "slice": 0})
    assert _dice(mask > 0, _reference(CT, ORGAN)) >= 0.80
    for same in (
        {"roi": [x0, x1, y0, y1, 0, 0]},
        {"box": f"{x0},{y0},{x1},{y1}"},
        {"box": [x0, y0, x1, y1, 0], "text": "", "label": ""},
        {"prompt": "box", "foreground": [[x0, y1, 0], [x1, y0, 0]]},
    ):
        assert np.array_equal(server.infer(same)[0], mask)


def test_words_segment_on_both_models(server: Server) -> None:
    """Breaks when text does not reach the network, or a class index does not come back as its voxel value."""
    mask, params = server.infer({"text": "liver"})
    assert params["label_names"] == {"liver": 1}
    assert mask.max() <= 1
    info = requests.get(f"{server.url}/info/", timeout=30).json()["models"]["imis_text"]["labels"]
    classes, params = server.infer({"label_prompt": [info["liver"]]}, model="imis_text")
    assert np.array_equal(classes == info["liver"], mask == 1)
    assert params["label_names"]["liver"] == info["liver"]


def test_automatic_segmentation_finds_what_is_there(server: Server) -> None:
    """Breaks when OHIF's empty request fails, a voxel value has no label, or confidence in a name says nothing: then
    all that is there is left out, or all that is not is let in."""
    mask, params = server.infer({}, model="imis_text")
    found = {entry["label"] for entry in params["iou_predictions"]}
    assert found <= set(params["label_names"])
    assert set(np.unique(mask)) - {0} <= set(params["label_names"].values())
    assert "liver" in found
    present = {name for name in FACTS["labels"] if _reference(CT, name).any()}
    assert len(found - present) <= 1, "one of a dozen may be mistaken"
    assert _dice(mask == params["label_names"]["liver"], _reference(CT, "liver")) > 0.8


def test_a_click_in_a_volume_marks_its_slice_only(server: Server) -> None:
    """Breaks when slices are swapped; the middle slice is the one that the 2D study holds."""
    alone, _ = server.infer({"foreground": [CLICK]})
    mask, params = server.infer({"foreground": [[CLICK[0], CLICK[1], 1]]}, "three_slices")
    assert mask.shape == (3, 512, 512)
    assert params["slice"] == 1
    assert not mask[[0, 2]].any()
    assert np.array_equal(mask[1], alone[0])
    both, _ = server.infer({"foreground": [[CLICK[0], CLICK[1], 1], [100, 270, 0]]}, "three_slices")
    assert np.array_equal(both[1], mask[1])
    assert both[0].any()
    assert not both[2].any()


def test_a_colour_picture_is_segmented_too(server: Server) -> None:
    """Breaks when three channels are taken for slices, or rows for columns."""
    mask, _ = server.infer({"foreground": [CLICK[:2]]}, "photo")
    assert mask.squeeze().shape == (400, 512)


BAD = {
    "no prompt": ({}, {}, 422, "no prompt"),
    "click outside": ({"foreground": [[512, 3, 0]]}, {}, 422, "0..511"),
    "slice out of range": ({"foreground": [[5, 5, 1]]}, {}, 422, "k=1"),
    "slice key out of range": ({"text": "liver", "slice": 9}, {}, 422, "0..0"),
    "NaN": ('{"foreground": [[NaN, 3, 0]]}', {}, 422, "finite"),
    "a box of no area": ({"box": [5, 5, 5, 5]}, {}, 422, "no area"),
    "a box outside": ({"box": [900, 900, 950, 950]}, {}, 422, "outside"),
    "an unknown text": ({"text": "unobtainium"}, {}, 422, "unobtainium"),
    "an unknown label alone": ({"label": "livre"}, {}, 422, "liver"),
    "a label index of nothing": ({"label_prompt": [999]}, {"model": "imis_text"}, 422, "999"),
    "a window of no width": ({"foreground": [CLICK], "window": "40,0"}, {}, 422, "width"),
    "broken JSON": ('{"foreground": ', {}, 400, "JSON"),
    "JSON that is no object": ("[1, 2]", {}, 400, "JSON"),
    "very deep JSON": ("[" * 100_000, {}, 400, "JSON"),
    "unknown model": ({"foreground": [CLICK]}, {"model": "unet"}, 404, "imis_text"),
    "unknown image": ({"foreground": [CLICK]}, {"image": "nobody"}, 404, "nobody"),
    "no image": ({"foreground": [CLICK]}, {"image": ""}, 422, "no image"),
    "unknown session": ({"foreground": [CLICK]}, {"session_id": "1234"}, 404, "1234"),
    "unknown output": ({"foreground": [CLICK]}, {"output": "hologram"}, 422, "output"),
    "DICOM SEG of a folder": ({"foreground": [CLICK]}, {"output": "dicom_seg"}, 422, "DICOM series"),
    "a truncated file": ({"foreground": [CLICK]}, {"image": "truncated"}, 422, ""),
    "a file that is no image": ({"foreground": [CLICK]}, {"image": "no_image"}, 422, ""),
    "an absolute path": ({"foreground": [CLICK]}, {"image": str(SAMPLES / f"{CT}.nii.gz")}, 422, "without path"),
    "a path upwards": ({"foreground": [CLICK]}, {"image": "../studies/abdomen_ct_1"}, 422, "without path"),
    "dots": ({"foreground": [CLICK]}, {"image": ".."}, 422, "without path"),
    "a session with a path": ({"foreground": [CLICK]}, {"session_id": "../../x"}, 422, "without path"),
    "an image smuggled into params": (
        {"foreground": [CLICK], "image": "/etc/passwd"},
        {"image": "nobody"},
        404,
        "nobody",
    ),
}


@pytest.mark.parametrize(("params", "query", "status", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_a_4xx_with_its_reason(
    server: Server, params: object, query: dict[str, str], status: int, message: str
) -> None:
    """Breaks when bad input passes, becomes an opaque 500, stops the server or writes into the studies."""
    before = _tree(server.studies)
    answer = server.post(params, **query)
    assert answer.status_code == status, answer.text
    detail = json.dumps(answer.json()["detail"])
    assert message in detail
    assert len(detail) > 10
    assert str(server.studies) not in detail
    assert requests.get(f"{server.url}/info/", timeout=30).status_code == 200
    assert _tree(server.studies) == before


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("label", {"image": CT, "tag": "../../x"}),
        ("label", {"image": CT, "tag": "/tmp/x"}),
        ("label", {"image": "../x", "tag": "final"}),
        ("image", {"image": "../x"}),
        ("image", {"image": "a/b"}),
        ("", {"image": "..\\x"}),
    ],
)
def test_uploads_stay_in_the_study_folder(server: Server, path: str, query: dict[str, str]) -> None:
    """Breaks when a name in the query can walk out of the studies, which the stock server allows."""
    before = _tree(server.studies.parent)
    part = "label" if path == "label" else "file"
    files = {part: ("x.nii.gz", (SAMPLES / "reference" / f"{CT}.nii.gz").read_bytes())}
    answer = requests.put(f"{server.url}/datastore/{path}", params=query, files=files, timeout=30)
    assert answer.status_code == 422
    assert "without path" in answer.json()["detail"]
    assert _tree(server.studies.parent) == before


def test_the_stock_endpoints_findings_are_4xx_too(server: Server) -> None:
    """Breaks when an unknown image, unknown strategy or broken JSON beside /infer is an opaque 500 again."""
    files = {"label": ("x.nii.gz", b"x")}
    put = f"{server.url}/datastore/label"
    assert requests.put(put, params={"image": "nobody"}, files=files, timeout=30).status_code == 404
    assert requests.put(put, params={"image": CT}, data={"params": "{"}, files=files, timeout=30).status_code == 400
    assert requests.post(f"{server.url}/activelearning/crystal_ball", json={}, timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "part", "status"),
    [
        ("POST", "infer/imis", "file", 422),
        ("PUT", "datastore/label?image=nobody", "label", 404),
        ("PUT", f"datastore/label?image={CT}", "label", 422),
        ("PUT", "session/", "files", 422),
    ],
)
def test_nothing_of_a_refused_upload_stays(server: Server, method: str, path: str, part: str, status: int) -> None:
    """Breaks if what cannot be used fills the disk for good: after an error nobody does what was left for later."""
    temporary = server.log.parent / "tmp"
    before = _tree(temporary)
    files = [(part, ("first.nii.gz", b"no image"))]
    if part == "files":
        files.append((part, ("a\x07name", b"no image")))
    data = {"params": json.dumps({"foreground": [[1, 1, 0]]})}
    answer = requests.request(method, f"{server.url}/{path}", data=data, files=files, timeout=60)
    assert answer.status_code == status, answer.text
    assert _tree(temporary) == before


@pytest.mark.parametrize("name", ["scan.nii.gz", "CT_small.dcm"])
def test_an_upload_is_segmented_without_being_kept(server: Server, name: str) -> None:
    """Breaks when a file sent with the click is not read in its format, or stays in the studies."""
    before = _tree(server.studies)
    source = SAMPLES / f"{CT}.nii.gz" if name == "scan.nii.gz" else Path(get_testdata_file(name))
    answer = requests.post(
        f"{server.url}/infer/imis",
        params={"output": "image"},
        data={"params": json.dumps({"foreground": [[60, 50, 0]]})},
        files={"file": (name, source.read_bytes())},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert _read(answer.content, server.log.parent).shape == sitk.GetArrayFromImage(sitk.ReadImage(source)).shape
    assert _tree(server.studies) == before


def test_a_slicer_users_way(server: Server, tmp_path: Path) -> None:
    """Breaks when anything that the Slicer module calls in a session of annotating changes its answer."""
    client = MONAILabelClient(server.url, str(tmp_path), "user-xyz")
    assert client.auth_enabled() is False
    done = client.info()["datastore"]["completed"]
    sample = client.next_sample("random", {})
    assert sample["id"] != "abdomen_ct_4"
    assert Path(sample["path"]).is_file()
    options = {"text": "", "slice": "", "window": "", "prompt": "points", "result_extension": ".nrrd"}
    file, params = client.infer("imis", CT, {"label": "liver", "foreground": [CLICK], "background": [], **options})
    assert params["label_names"] == {"liver": 1}
    label = tmp_path / "label.nii.gz"
    sitk.WriteImage(sitk.ReadImage(file), label)
    client.save_label(CT, str(label), "", {"label_info": [{"name": "liver", "idx": 1}], "model": "imis"})
    assert client.info()["datastore"]["completed"] == done + 1
    assert (server.studies / "labels" / "final" / f"{CT}.nii.gz").is_file()
    session = client.create_session(str(SAMPLES / "abdomen_ct_3.nii.gz"))["session_id"]
    click = FACTS["images"]["abdomen_ct_3"]["clicks"]["liver"]
    file, _ = client.infer("imis", "", {"label": "liver", "foreground": [click], **options}, session_id=session)
    assert sitk.ReadImage(file).GetSize() == (512, 512, 1)
    client.remove_session(session)


def test_a_batch_runs_in_its_own_process_and_saves_labels(server: Server) -> None:
    """Breaks when the app cannot start outside the server, or a batch's tag becomes a wrong folder."""
    answer = requests.post(
        f"{server.url}/batch/infer/imis_text",
        params={"images": "labeled"},
        json={"multi_gpu": False, "device": "cpu", "text": "aorta"},
        timeout=60,
    )
    assert answer.status_code == 200
    saved = server.studies / "labels" / "original" / "abdomen_ct_4.nrrd"
    for _ in range(180):
        if saved.is_file():
            break
        time.sleep(1)
    assert sitk.ReadImage(saved).GetSize() == (512, 512, 1)


def test_the_log_has_a_line_per_click_and_no_names(server: Server) -> None:
    """Breaks when file names, which may identify a patient, or nothing at all is logged about a click."""
    server.infer({"foreground": [CLICK], "label": "secret name"})
    text = server.log.read_text()
    assert "clicks=1" in text
    assert "cache_hit=" in text
    assert CT not in text
    assert "secret name" not in text


def _tree(folder: Path) -> set[str]:
    skipped = ("server.log", ".lock", "answer.nrrd", "mask.nrrd", "datastore_v2.json")
    return {str(p) for p in folder.rglob("*") if not p.name.endswith(skipped)}


def test_a_scoring_task_tells_the_strategies_what_the_model_is_unsure_of(server: Server) -> None:
    """Breaks if MONAI Label's own scoring cannot be started, stops at a broken image, or its scores reach nobody."""
    answer = requests.post(f"{server.url}/scoring/uncertainty", timeout=60)
    assert answer.status_code == 200, answer.text
    end = time.monotonic() + 600  # it gives way to everything, and tests beside this one keep the cores busy
    while (task := requests.get(f"{server.url}/scoring/", timeout=60).json())["status"] not in ("DONE", "ERROR"):
        assert time.monotonic() < end, task
        time.sleep(0.5)
    assert task["status"] == "DONE", task
    num_images = len(requests.get(f"{server.url}/datastore/?output=all", timeout=60).json()["objects"])
    assert any(f"scored {num_images} of {num_images}" in line for line in task["details"]), task
    told = requests.post(f"{server.url}/activelearning/uncertain", json={}, timeout=60).json()
    assert told["num_scored"] >= num_images - 2, told  # two of them are no images
    assert told["id"] not in ("truncated", "no_image")
