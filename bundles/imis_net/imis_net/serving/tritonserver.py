"""A Triton server as a child process: NVIDIA's own binary, from the nvidia-pytriton wheel, on this machine's loopback.

The wheel holds the server and its Python backend; pytriton's own Python layer is not used. With a container at hand the
same repository is served by NVIDIA's image instead (``deploy/``).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from imis_net.errors import ServingError
from imis_net.serving import giving_way
from imis_net.serving.manifest import RELOADED

LOOPBACK = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
STUB = "triton_python_backend_stub"
_OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"preexec_fn": os.setpgrp}


@dataclass
class TritonServer:
    """A context manager: ready when entered, gone when left.

    Attributes:
        repository: the folder of models; never written to by the server.
        models: which of them to load; the rest waits for a load request.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        log: where the server's own words go; a temporary file by default.
        environment: for the models' processes.
    """

    repository: Path
    models: Sequence[str]
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    log: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    start_timeout_s: float = 300.0
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="imis_triton_"), init=False
    )

    @property
    def grpc_url(self) -> str:
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://{LOOPBACK}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until every model is ready. Called again after a death, it takes the same ports.

        Raises:
            ServingError: no such binary here, a port in use, a model that does not load; with the server's last words.
        """
        self._take_ports()
        folder = Path(self._folder.name)
        self.log = self.log or folder / "tritonserver.log"
        backends = _backend_folder(folder)
        command = self._command(backends)
        with self.log.open("ab") as log:
            # Its own group, so that the models' processes can be ended with it even when it was killed. Not its own
            # session: Linux weighs those against each other whatever the priorities within, so that what gives way
            # in one would take from users in the other.
            self.process = subprocess.Popen(
                command, env=self._environment(), stdout=log, stderr=subprocess.STDOUT, **_OWN_GROUP
            )
        try:
            self._wait_until_ready()
            _let_new_processes_give_way(backends)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ask it to end; after 20 s, end it."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._end_group()

    def kill(self) -> None:
        """As a crash would: the server and its models' processes at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._end_group()

    def _end_group(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for left in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            left.unlink(missing_ok=True)

    @property
    def _shm_prefix(self) -> str:
        return f"{Path(self._folder.name).name}_"

    def _take_ports(self) -> None:
        for name in ("http_port", "grpc_port", "metrics_port"):
            port = _free_port(getattr(self, name), name.removesuffix("_port"))
            setattr(self, name, port)

    def _command(self, backends: Path) -> list[str]:
        return [
            str(_distribution() / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--http-address={LOOPBACK}",
            f"--http-port={self.http_port}",
            f"--grpc-address={LOOPBACK}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            "--metrics-config=summary_latencies=true",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",  # for which each model's process would be started twice
            *(f"--load-model={model}" for model in self.models),
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            "--allow-gpu-metrics=false",
            "--pinned-memory-pool-byte-size=0",
            "--exit-timeout-secs=5",
        ]

    def _environment(self) -> dict[str, str]:
        """The models' processes take their Python from the first ``python3`` on PATH and ignore PYTHONPATH."""
        kept = {key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS")}
        libraries = [str(_site_packages() / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        return {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "PYTHONDONTWRITEBYTECODE": "1",
            "IMIS_NET_PATH": str(Path(__file__).resolve().parents[2]),
            **self.environment,
        }

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        give_up = time.monotonic() + self.start_timeout_s
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                raise ServingError(f"tritonserver ended with code {self.process.returncode}: {self.last_words()}")
            if answers(f"{self.http_url}/v2/health/ready"):
                return
            time.sleep(0.05)
        raise ServingError(f"tritonserver: not ready after {self.start_timeout_s:g} s: {self.last_words()}")

    def last_words(self, num_characters: int = 1500) -> str:
        """What it said about its failure, or else the end of its log."""
        text = self.log.read_text(errors="replace") if self.log and self.log.is_file() else ""
        return text[text.rfind("\nerror:") + 1 :][-num_characters:] if "\nerror:" in text else text[-num_characters:]


def answers(url: str) -> bool:
    """Whether an HTTP address says 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def is_installed() -> bool:
    return find_spec("pytriton") is not None


def _site_packages() -> Path:
    spec = find_spec("pytriton")  # found, never imported
    if spec is None or spec.origin is None:
        raise ServingError("no Triton server here: pip install nvidia-pytriton==0.7.0 (Linux x86-64, glibc 2.35)")
    return Path(spec.origin).resolve().parents[1]


def _distribution() -> Path:
    return _site_packages() / "pytriton" / "tritonserver"


def _backend_folder(root: Path) -> Path:
    """The Python backend with the stub of this very Python version beside it, which is how one is chosen."""
    folder = root / "backends" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    source = _distribution()
    for file in (
        source / "backends" / "python" / "libtriton_python.so",
        source / "backends" / "python" / "triton_python_backend_utils.py",
        source / "python_backend_stubs" / version / STUB,
    ):
        (folder / file.name).symlink_to(file)
    return folder.parent


def _let_new_processes_give_way(backends: Path) -> None:
    """From here on a version is loaded beside one that serves: its process gives way until it has loaded."""
    if not giving_way.comes_back():
        return
    stub = backends / "python" / STUB
    draft = stub.with_suffix(".draft")
    reloaded = "|".join(f"*/{model}/*" for model in RELOADED)
    draft.write_text(
        f"""#!/bin/sh
case "$*" in
  {reloaded}) exec {shlex.join(giving_way.command(stub.resolve()))} "$@" ;;
  *) exec {shlex.quote(str(stub.resolve()))} "$@" ;;
esac
"""
    )
    draft.chmod(0o755)
    draft.rename(stub)


def _free_port(port: int, name: str) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise ServingError(f"{name} port {port} is in use; choose another, or 0 for a free one") from error
        return int(probe.getsockname()[1])
