"""scripts/serve.py, what ``make serve`` runs: the first five minutes of a newcomer."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "apps" / "imis" / "sample_studies"


def test_the_printed_curl_line_segments_the_sample(tmp_path: Path) -> None:
    """Breaks when the studies are not put in place, the line does not work as printed, or the server lives on."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path)
    try:
        line = _curl_line(log, process)
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, timeout=120)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "mask.nrrd")) > 0
    facts = json.loads((SAMPLES / "labels.json").read_text())
    label_map = sitk.ReadImage(SAMPLES / "reference" / f"{facts['example']['image']}.nii.gz")
    reference = sitk.GetArrayFromImage(label_map) == facts["labels"][facts["example"]["label"]]
    assert 2 * np.sum(mask & reference) / (mask.sum() + reference.sum()) >= 0.80
    assert (tmp_path / "studies" / "ATTRIBUTION.md").is_file()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def _curl_line(log: Path, process: subprocess.Popen) -> str:
    for _ in range(240):
        found = re.search(r"^\s*(curl .*)$", log.read_text(), re.MULTILINE)
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()[-4000:]
        time.sleep(0.5)
    pytest.fail(f"no curl line in two minutes:\n{log.read_text()[-4000:]}")


def test_a_taken_port_is_said_at_once(tmp_path: Path) -> None:
    """Breaks when a second server dies late with a traceback, or touches the studies first."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--port", str(port)]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert f"port {port} is in use" in answer.stderr
    assert not any(tmp_path.iterdir())


def test_settings_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    """Breaks if they are only found by the server's start, in a traceback, or studies are laid out before."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--conf", "segmenter", "tritn"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
    assert "--conf segmenter" in answer.stderr
    assert not any(tmp_path.iterdir())
