"""scripts/serve_triton.py, what ``make serve-triton`` runs: two servers by one command, and none left behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK as sitk

from imis_net.serving.tritonserver import is_installed

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "apps" / "imis" / "sample_studies"
FACTS = json.loads((SAMPLES / "labels.json").read_text())
CT, ORGAN = FACTS["example"]["image"], FACTS["example"]["label"]

pytestmark = pytest.mark.skipif(not is_installed(), reason="nvidia-pytriton, which holds the server, is not installed")


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_a_click_goes_through_both_servers_and_both_end(tmp_path: Path) -> None:
    """Breaks if the click is answered without Triton, its mask is not the aorta, or a server outlives the command."""
    port, grpc, metrics, http = free_ports(4)
    ports = ["--port", port, "--triton-grpc-port", grpc, "--triton-metrics-port", metrics, "--triton-http-port", http]
    command = [sys.executable, str(ROOT / "scripts" / "serve_triton.py"), *map(str, ports)]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path)
    try:
        wait_until(lambda: "Ready at" in log.read_text(), process, log)
        params = json.dumps({"foreground": [FACTS["images"][CT]["clicks"][ORGAN]], "label": ORGAN})
        answer = requests.post(
            f"http://127.0.0.1:{port}/infer/imis",
            params={"image": CT, "output": "image"},
            data={"params": params},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as page:
            counted = re.search(r'nv_inference_count\{model="imis_decoder".*\} (\d+)', page.read().decode())
        assert counted is not None
        assert int(counted[1]) >= 1
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    (tmp_path / "mask.nrrd").write_bytes(answer.content)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "mask.nrrd")) > 0
    reference = sitk.GetArrayFromImage(sitk.ReadImage(SAMPLES / "reference" / f"{CT}.nii.gz")) == FACTS["labels"][ORGAN]
    assert 2 * np.sum(mask & reference) / (mask.sum() + reference.sum()) >= 0.80
    for closed in (port, grpc, metrics, http):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", closed), timeout=5)


def wait_until(is_done, process: subprocess.Popen, log: Path) -> None:
    for _ in range(480):
        if is_done():
            return
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.5)
    pytest.fail(f"not ready in four minutes:\n{log.read_text()[-4000:]}")
