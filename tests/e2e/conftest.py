"""What end-to-end tests start: a real server, and a headless Chromium that reaches nothing but this computer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "imis"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
"""WebGL without a graphics card, and no address but the loopback one."""


@dataclass(frozen=True)
class Running:
    """A server of ours on ``studies``."""

    url: str
    studies: str
    log: Path


@contextmanager
def running(studies: str, folder: Path, **environment: str) -> Iterator[Running]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", studies]
    paths = {
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
    }
    paths["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, **paths, **environment},
        )
    try:
        _wait(url, process, log)
        yield Running(url, studies, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(480):
        assert process.poll() is None, f"server stopped:\n{log.read_text()[-4000:]}"
        try:
            if requests.get(f"{url}/info/", timeout=30).status_code == 200:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    pytest.fail(f"no answer in four minutes:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def serve() -> Callable[..., object]:
    """``with serve(studies, folder) as server``."""
    return running


@pytest.fixture
def page() -> Iterator[object]:
    """A page of headless Chromium; what goes wrong in its scripts fails the test."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: make e2e")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.on("pageerror", lambda error: errors.append(str(error)))
        yield opened
        browser.close()
    assert not errors, errors
