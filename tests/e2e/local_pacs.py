"""A real Orthanc, alone in a network namespace, with the series of a phantom: for tests that need a PACS.

Debian's Orthanc listens on every address and cannot be told not to; in a namespace there is none but the loopback one.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ORTHANC = "http://127.0.0.1:8042"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
HAS_ORTHANC = bool(shutil.which("Orthanc") and PLUGIN.is_file())
SHAPE = (128, 112, 20)
CENTRES = {"liver": (44, 50, 7), "spleen": (88, 62, 12)}
RADII = {"liver": (20, 16, 5), "spleen": (14, 18, 4)}


def run_alone(program: Path, folder: Path) -> str:
    """What a program prints that gets ``folder`` and is alone on its network.

    Raises:
        pytest.skip.Exception: no namespace may be made here.
        AssertionError: it fails; with all that it said.
    """
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace may be made here, and Orthanc listens on every address")
    command = [*alone, sys.executable, str(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    log = folder / "server.log"
    told = f"{done.stdout}\n{done.stderr[-6000:]}\n{log.read_text()[-2000:] if log.is_file() else ''}"
    assert done.returncode == 0, told
    return done.stdout


def loopback_up() -> None:
    """A new network namespace has one address, and it is down."""
    set_flags, up_and_running = 0x8914, 0x41
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh", b"lo", up_and_running))


@contextmanager
def running_orthanc(folder: Path) -> Iterator[subprocess.Popen]:
    """Orthanc on what ``folder`` holds of an earlier run; stopped at the end unless it was killed."""
    settings = {
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": 8042,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("a") as log:
        process = subprocess.Popen([str(shutil.which("Orthanc")), str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                requests.get(f"{ORTHANC}/system", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def store(content: bytes) -> None:
    """Put a DICOM file into Orthanc."""
    requests.post(f"{ORTHANC}/instances", data=content, timeout=30).raise_for_status()


def truth(name: str) -> np.ndarray:
    """Where an organ of the phantom is, bool [I, J, K]."""
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    (x, y, z), (a, b, c) = CENTRES[name], RADII[name]
    return ((i - x) / a) ** 2 + ((j - y) / b) ** 2 + ((k - z) / c) ** 2 < 1


def write_series(folder: Path) -> tuple[str, str]:
    """A lopsided CT of two organs, so that any flip shows; its study and series."""
    folder.mkdir()
    i, j = np.ogrid[: SHAPE[0], : SHAPE[1]]
    voxels = np.full(SHAPE, -900.0)
    voxels[((i - 64) / 58) ** 2 + ((j - 56) / 48) ** 2 < 1] = 20
    voxels[truth("liver")], voxels[truth("spleen")] = 140, 190
    voxels += np.random.default_rng(0).normal(0, 6, SHAPE)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.is_little_endian, file.is_implicit_VR = True, False
        facts = {
            "SOPClassUID": CTImageStorage,
            "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "PatientName": "Phantom^Test",
            "PatientID": "PHANTOM",
            "PatientBirthDate": "",
            "PatientSex": "O",
            "StudyInstanceUID": study,
            "SeriesInstanceUID": series,
            "FrameOfReferenceUID": frame,
            "StudyID": "1",
            "SeriesNumber": 1,
            "InstanceNumber": k + 1,
            "AccessionNumber": "1",
            "Modality": "CT",
            "Manufacturer": "none",
            "StudyDescription": "phantom",
            "SeriesDescription": "phantom",
            "ReferringPhysicianName": "",
            "PositionReferenceIndicator": "",
            "PatientPosition": "HFS",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "PixelSpacing": [2.0, 2.0],
            "SliceThickness": 5.0,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-120.0, -110.0, 5.0 * k],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": SHAPE[1],
            "Columns": SHAPE[0],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "RescaleIntercept": 0,
            "RescaleSlope": 1,
            "WindowCenter": 60,
            "WindowWidth": 400,
        }
        for name, value in facts.items():
            setattr(file, name, value)
        for day in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
            setattr(file, day, "20260101")
        for moment in ("StudyTime", "SeriesTime", "ContentTime"):
            setattr(file, moment, "120000")
        file.PixelData = voxels[..., k].T.astype(np.int16).tobytes()
        pydicom.dcmwrite(folder / f"{k:03d}.dcm", file, write_like_original=False)
    return study, series
