"""A server process on a free port of this computer, for the end-to-end tests that need one of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "imis"


@dataclass
class RunningServer:
    url: str
    studies: str
    log: Path
    process: subprocess.Popen

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    folder: Path, studies: Path | str, *arguments: str, app: Path = APP, ready: str = "/readyz", **environment: str
) -> Iterator[RunningServer]:
    """MONAI Label's own command with this project's app, stopped at the end; its temporary files in ``folder/tmp``."""
    port, log, temporary = free_port(), folder / "server.log", folder / "tmp"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    with log.open("a") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *arguments],
            stdout=output,
            stderr=output,
            cwd=folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "TMPDIR": str(temporary),
                "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
                "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicom"),
                **environment,
            },
        )
    server = RunningServer(f"http://127.0.0.1:{port}", str(studies), log, process)
    try:
        _wait(server, ready)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait(server: RunningServer, ready: str) -> None:
    for _ in range(480):
        assert server.process.poll() is None, f"server stopped:\n{server.log.read_text()[-4000:]}"
        try:
            if requests.get(server.url + ready, timeout=30).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.25)
    raise AssertionError(f"no answer in two minutes:\n{server.log.read_text()[-4000:]}")
