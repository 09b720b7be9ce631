"""Labels on their way to and from a real Orthanc, alone in a network namespace: run by ``test_pacs.py``."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pydicom_seg
import requests
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

sys.path.insert(0, str(Path(__file__).parent))
from local_pacs import CENTRES, ORTHANC, SHAPE, loopback_up, running_orthanc, store, truth, write_series
from running_server import running_server

LIVER, SPLEEN = 2, 7
"""Values of the label: neither 1, 2 nor in the order of the names."""
LABEL_INFO = [
    {"name": "spleen", "idx": SPLEEN, "color": [157, 108, 162]},
    {"name": "liver", "idx": LIVER, "color": [221, 130, 101]},
]
SEGMENT_READER = Path(sys.executable).with_name("segimage2itkimage")


class Journey:
    """One server on one PACS with one series."""

    def __init__(self, folder: Path, url: str, study: str, series: str) -> None:
        self.folder, self.url, self.study, self.image = folder, url, study, series
        self.labels = f"{url}/imis/labels/{series}"
        self.sources = [pydicom.dcmread(file) for file in sorted((folder / "series").iterdir())]

    def get(self, path: str, **query: str) -> requests.Response:
        answer = requests.get(f"{self.url}{path}", query, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer

    def submit(self, name: str, content: bytes, **params: object) -> dict[str, Any]:
        answer = requests.put(
            f"{self.url}/datastore/label",
            params={"image": self.image, "tag": "final"},
            data={"params": json.dumps({"client_id": "ann", **params})},
            files={"label": (name, content)},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def take_in(self, series: str) -> requests.Response:
        return requests.post(f"{self.labels}/archive/{series}", timeout=60)

    def shown(self) -> np.ndarray:
        """The label that viewers and training get."""
        content = self.get("/datastore/label", label=self.image, tag="final").content
        return np.asarray(_nifti(content).dataobj).astype(np.uint8)

    def on_pacs(self) -> list[Dataset]:
        """The DICOM SEGs of the study, found by QIDO and fetched by WADO; the oldest first."""
        query = {"Modality": "SEG", "StudyInstanceUID": self.study}
        found = requests.get(f"{ORTHANC}/dicom-web/instances", query, timeout=30).json()
        uids = [instance["00080018"]["Value"][0] for instance in found]
        segs = [pydicom.dcmread(io.BytesIO(_wado(uid))) for uid in uids]
        return sorted(segs, key=lambda seg: (seg.ContentDate, seg.ContentTime))


def main(folder: Path) -> None:
    loopback_up()
    study, series = write_series(folder / "series")
    state = ["--conf", "state_dir", str(folder / "state")]
    with running_orthanc(folder) as orthanc:
        for file in sorted((folder / "series").iterdir()):
            store(file.read_bytes())
        serving = running_server(folder, f"{ORTHANC}/dicom-web", *state, MONAI_LABEL_DICOMWEB_CACHE_EXPIRY="1")
        with serving as server:
            journey = Journey(folder, server.url, study, series)
            _a_submitted_label_is_on_the_pacs(journey)
            _a_models_answer_is_a_dicom_seg(journey)
            _one_segment_keeps_its_name(journey)
            _labels_of_other_programs_are_taken_in(journey)
            _what_is_no_label_of_the_image_is_refused(journey)
            orthanc.kill()
            orthanc.wait(30)
            _a_dead_pacs_takes_nothing_with_it(journey)
            with running_orthanc(folder):
                _it_is_sent_when_the_pacs_is_back(journey)
                _a_data_set_has_the_labels_of_the_pacs(journey)
            _the_log_names_nobody(journey, server.log.read_text())


def _a_submitted_label_is_on_the_pacs(journey: Journey) -> None:
    clicked = _clicked(journey)
    label = np.where(clicked, LIVER, 0).astype(np.uint8)
    label[truth("spleen") & ~clicked] = SPLEEN
    image = _nifti(journey.get("/datastore/image", image=journey.image).content)
    content = gzip.compress(nib.Nifti1Image(label, image.affine).to_bytes())
    saved = journey.submit("label.nii.gz", content, label_info=LABEL_INFO)
    assert saved["archive"] == {"state": "stored", "reason": ""}
    (seg,) = journey.on_pacs()
    source = journey.sources[0]
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert (seg.PatientID, seg.StudyInstanceUID) == (source.PatientID, journey.study)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == journey.image
    referenced = {i.ReferencedSOPInstanceUID for i in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced <= {s.SOPInstanceUID for s in journey.sources}
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["liver", "spleen"]
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in seg.SegmentSequence] == ["Liver", "Spleen"]
    assert all(s.RecommendedDisplayCIELabValue for s in seg.SegmentSequence)
    for number, value in ((1, LIVER), (2, SPLEEN)):
        expected = label == value
        np.testing.assert_array_equal(_by_highdicom(seg, journey)[number], expected)
        np.testing.assert_array_equal(_by_pydicom_seg(seg, number, image.affine), expected)
    np.testing.assert_array_equal(_by_dcmqi(seg, journey, image.affine), np.searchsorted([0, LIVER, SPLEEN], label))
    answered = requests.get(f"{journey.labels}/{saved['version']}/dicom_seg", timeout=60)
    assert answered.headers["Content-Type"] == "application/dicom"
    assert pydicom.dcmread(io.BytesIO(answered.content)).to_json_dict() == seg.to_json_dict()
    np.testing.assert_array_equal(journey.shown(), label)
    info = journey.get("/datastore/label/info", label=journey.image, tag="final").json()
    assert info["SeriesInstanceUID"] == seg.SeriesInstanceUID
    assert (info["StudyInstanceUID"], info["PatientID"]) == (journey.study, source.PatientID)
    assert journey.get("/info/").json()["datastore"]["completed"] == 1
    print("submit:", int((label > 0).sum()), "voxels", flush=True)


def _a_models_answer_is_a_dicom_seg(journey: Journey) -> None:
    """MONAI Label's ``output=dicom_seg``, without a label that was saved."""
    answer = _infer(journey, "dicom_seg")
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["liver"]
    np.testing.assert_array_equal(_by_highdicom(seg, journey)[1], _clicked(journey))


def _one_segment_keeps_its_name(journey: Journey) -> None:
    """OHIF's way: raw bytes, and names of segments that are not there."""
    label = np.where(truth("spleen"), SPLEEN, 0).astype(np.uint8)
    journey.submit("label.bin", label.tobytes(order="F"), label_info=LABEL_INFO)
    assert [s.SegmentLabel for s in journey.on_pacs()[-1].SegmentSequence] == ["spleen"]
    np.testing.assert_array_equal(journey.shown(), label)
    empty = journey.submit("label.bin", bytes(label.size), label_info=LABEL_INFO)
    assert empty["archive"]["state"] == "impossible"
    assert len(journey.on_pacs()) == 2


def _labels_of_other_programs_are_taken_in(journey: Journey) -> None:
    masks = {"spleen": truth("spleen"), "liver": truth("liver")}
    seg = _written_elsewhere(journey.sources, masks)
    store(_bytes(seg))
    listed = requests.get(f"{journey.labels}/archive", timeout=60).json()["archive"]
    assert [s["segments"] for s in listed] == [["liver", "spleen"], ["spleen"], ["spleen", "liver"]]
    assert [s["version"] for s in listed] == [1, 2, None]
    taken = journey.take_in(seg.SeriesInstanceUID).json()
    names = [(entry["name"], entry["idx"]) for entry in taken["facts"]["label_info"]]
    assert names == [("spleen", 1), ("liver", 2)]
    assert "archive" not in taken, "it is there"
    np.testing.assert_array_equal(journey.shown(), masks["spleen"] + 2 * masks["liver"])
    assert journey.take_in(seg.SeriesInstanceUID).json()["id"] == taken["id"]
    uploaded = journey.submit("seg.dcm", _bytes(_written_elsewhere(journey.sources, masks)))
    versions = requests.get(journey.labels, timeout=60).json()["versions"]
    assert versions[-1]["id"] == uploaded["version"]
    assert versions[-1]["facts"]["label_info"] == taken["facts"]["label_info"]
    print("taken in:", names, flush=True)


def _what_is_no_label_of_the_image_is_refused(journey: Journey) -> None:
    masks = {"spleen": truth("spleen"), "liver": truth("liver")}
    probability = np.where(truth("liver"), 0.6, 0.0)
    overlapping = {"liver": truth("liver"), "organs": truth("liver") | truth("spleen")}
    mislabelled = _written_elsewhere(journey.sources, masks)
    mislabelled.SOPClassUID = mislabelled.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    mislabelled.SegmentationType = "LABELMAP"
    others = [pydicom.dcmread(file) for file in sorted((journey.folder / "series").iterdir())]
    for other in others:
        other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    files = {
        "fractions": _written_elsewhere(journey.sources, {"liver": probability}, "FRACTIONAL"),
        "overlap": _written_elsewhere(journey.sources, overlapping),
        "frames of each segment in what is called a label map": mislabelled,
        "other images": _written_elsewhere(others, masks),
    }
    before = len(requests.get(journey.labels, timeout=60).json()["versions"])
    for kind, seg in files.items():
        store(_bytes(seg))
        refused = journey.take_in(seg.SeriesInstanceUID)
        told = refused.json()["detail"]
        print(f"{kind}: {refused.status_code} {told}", flush=True)
        assert refused.status_code == 422
        assert told.startswith("DICOM SEG: ")
    assert len(requests.get(journey.labels, timeout=60).json()["versions"]) == before
    assert [_opened(journey, image).status_code for image in ("1.2.3", "*", "1.2.3,1.2.4")] == [404, 404, 404]
    assert [journey.take_in(series).status_code for series in ("1.2.3", journey.image)] == [404, 404]


def _opened(journey: Journey, image: str) -> requests.Response:
    return requests.post(f"{journey.url}/infer/imis", params={"image": image}, data={"params": "{}"}, timeout=60)


def _a_dead_pacs_takes_nothing_with_it(journey: Journey) -> None:
    label = np.where(truth("liver"), LIVER, 0).astype(np.uint8)
    started = time.monotonic()
    saved = journey.submit("label.bin", label.tobytes(order="F"), label_info=LABEL_INFO)
    print("submitted without PACS in", round(time.monotonic() - started, 2), "s:", saved["archive"], flush=True)
    assert saved["archive"] == {"state": "waiting", "reason": "the PACS does not answer"}
    assert "imis_uploads_waiting 1.0" in journey.get("/metrics").text
    np.testing.assert_array_equal(journey.shown(), label)
    time.sleep(1.1)  # until the list of images is asked for again
    assert journey.get("/info/").json()["datastore"]["total"] == 1
    assert _clicked(journey).any(), "what is here can be worked on"
    assert requests.get(f"{journey.labels}/archive", timeout=60).status_code == 503
    assert _opened(journey, "1.2.3").status_code == 503


def _it_is_sent_when_the_pacs_is_back(journey: Journey) -> None:
    for _ in range(120):
        newest = requests.get(journey.labels, timeout=60).json()["versions"][-1]
        if newest["archive"]["state"] == "stored":
            break
        time.sleep(0.25)
    assert newest["archive"]["state"] == "stored", newest["archive"]
    ours = [seg for seg in journey.on_pacs() if seg.Manufacturer == "IMIS-Net"]
    assert [[s.SegmentLabel for s in seg.SegmentSequence] for seg in ours][-1] == ["liver"]
    stored = {v["id"] for v in requests.get(journey.labels, timeout=60).json()["versions"] if _is_stored(v)}
    assert len(ours) == len(stored) == len({seg.SOPInstanceUID for seg in ours})
    print("sent later:", newest["id"], flush=True)


def _a_data_set_has_the_labels_of_the_pacs(journey: Journey) -> None:
    """Of a series that many open at once, and whose label another program wrote."""
    _, series = write_series(journey.folder / "second")
    sources = [pydicom.dcmread(file) for file in sorted((journey.folder / "second").iterdir())]
    for source in [*sources, _written_elsewhere(sources, {"spleen": truth("spleen")})]:
        store(_bytes(source))
    with ThreadPoolExecutor(6) as pool:
        query = {"image": series}
        opened = {image.content for image in pool.map(lambda _: journey.get("/datastore/image", **query), range(6))}
    assert len(opened) == 1, "who opens a series at the same moment sees the same"
    assert _nifti(opened.pop()).shape == SHAPE
    time.sleep(1.1)  # until the list of images is asked for again
    packed = zipfile.ZipFile(io.BytesIO(journey.get("/datastore/dataset").content))
    (name,) = [name for name in packed.namelist() if name.startswith("label/") and series in name]
    np.testing.assert_array_equal(np.asarray(_nifti(packed.read(name)).dataobj), truth("spleen"))
    (version,) = requests.get(f"{journey.url}/imis/labels/{series}", timeout=60).json()["versions"]
    assert [entry["name"] for entry in version["facts"]["label_info"]] == ["spleen"]


def _the_log_names_nobody(journey: Journey, log: str) -> None:
    source = journey.sources[0]
    for fact in (str(source.PatientName), source.PatientID, journey.study, journey.image, source.SOPInstanceUID):
        assert fact not in log, fact


def _is_stored(version: Mapping[str, Any]) -> bool:
    return version.get("archive", {}).get("state") == "stored"


def _clicked(journey: Journey) -> np.ndarray:
    """The liver of one slice, after a click: bool [I, J, K]."""
    file = journey.folder / "clicked.nrrd"
    file.write_bytes(_infer(journey, "image").content)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).transpose(2, 1, 0) > 0
    assert mask[CENTRES["liver"]], "the clicked voxel is not in the mask"
    return np.asarray(mask)


def _infer(journey: Journey, output: str) -> requests.Response:
    params = {"label": "liver", "foreground": [list(CENTRES["liver"])], "result_extension": ".nrrd"}
    query, form = {"image": journey.image, "output": output}, {"params": json.dumps(params)}
    answer = requests.post(f"{journey.url}/infer/imis", params=query, data=form, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer


def _by_highdicom(seg: Dataset, journey: Journey) -> dict[int, np.ndarray]:
    read = hd.seg.Segmentation.from_dataset(seg)
    frames = read.get_pixels_by_source_instance(
        [s.SOPInstanceUID for s in journey.sources], assert_missing_frames_are_empty=True
    )
    return {n: frames[..., n - 1].transpose(2, 1, 0) > 0 for n in read.segment_numbers}


def _by_pydicom_seg(seg: Dataset, number: int, affine: np.ndarray) -> np.ndarray:
    """The segment in the image's grid, placed by millimetres."""
    return _placed(pydicom_seg.SegmentReader().read(seg).segment_image(number), affine)


def _by_dcmqi(seg: Dataset, journey: Journey, affine: np.ndarray) -> np.ndarray:
    """All segments by number; dcmqi is C++ upon DCMTK and shares no line with what wrote them."""
    out = journey.folder / "dcmqi"
    out.mkdir()
    (out / "seg.dcm").write_bytes(_bytes(seg))
    command = [SEGMENT_READER, "--inputDICOM", out / "seg.dcm", "--outputDirectory", out, "--outputType", "nrrd"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    label = np.zeros(SHAPE, np.uint8)
    for file in out.glob("*.nrrd"):
        label[_placed(sitk.ReadImage(str(file)), affine)] = int(file.stem.split("-")[0])
    return label


def _placed(segment: sitk.Image, affine: np.ndarray) -> np.ndarray:
    """Which voxels of the image, whose ``affine`` is RAS, a segment marks: bool [I, J, K]."""
    marked = np.argwhere(sitk.GetArrayFromImage(segment).transpose(2, 1, 0) > 0)
    places = np.array([segment.TransformIndexToPhysicalPoint(index) for index in marked.tolist()])
    voxels = np.c_[places * [-1, -1, 1], np.ones(len(places))] @ np.linalg.inv(affine).T
    mask = np.zeros(SHAPE, bool)
    mask[tuple(np.rint(voxels[:, :3]).astype(int).T)] = True
    return mask


def _written_elsewhere(sources: list[Dataset], masks: Mapping[str, np.ndarray], kind: str = "BINARY") -> Dataset:
    """As another program writes one: its own order of segments, and frames only where something is."""
    numbers = range(1, len(masks) + 1)
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.stack([mask.transpose(2, 1, 0) for mask in masks.values()], axis=-1).astype(
            float if kind == "FRACTIONAL" else np.uint8
        ),
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name,
                segmented_property_category=codes.SCT.Organ,
                segmented_property_type=codes.SCT.Liver if name == "liver" else codes.SCT.Spleen,
                algorithm_type="MANUAL",
            )
            for number, name in zip(numbers, masks, strict=True)
        ],
        series_instance_uid=generate_uid(),
        series_number=77,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="another",
        manufacturer_model_name="another",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
    )


def _bytes(file: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, write_like_original=False)
    return buffer.getvalue()


def _nifti(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


def _wado(instance: str) -> bytes:
    found = requests.post(f"{ORTHANC}/tools/lookup", data=instance, timeout=30).json()
    (orthanc_id,) = [f["ID"] for f in found if f["Type"] == "Instance"]
    return requests.get(f"{ORTHANC}/instances/{orthanc_id}/file", timeout=30).content


if __name__ == "__main__":
    os.environ.setdefault("HOME", sys.argv[1])
    main(Path(sys.argv[1]))
