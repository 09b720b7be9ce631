"""What many tests share and none changes: made once, on first use."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

from imis_net.export import export
from imis_net.segmenter import TorchSegmenter, load_segmenter

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
RunScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def default_segmenter() -> TorchSegmenter:
    """The shipped model; a test that changes weights loads its own."""
    return load_segmenter()


@pytest.fixture(scope="session")
def default_graphs(default_segmenter: TorchSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model's graphs: about a minute of tracing, so never made twice, whichever worker comes first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # whose own folder lies in the session's
        root = root.parent
    folder = root / "graphs" / default_segmenter.weights_digest
    with FileLock(root / "graphs.lock"):
        if not folder.is_dir():
            folder.parent.mkdir(exist_ok=True)
            export(default_segmenter.network, folder)
    return folder


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunScript:
    """A command of ``scripts/`` in this process: a new one spends seconds on importing torch, each time."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [f"{name}.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        try:
            code = _script(name).main()
        except SystemExit as ended:  # argparse
            code = ended.code
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(command, code, printed.out, printed.err)

    return run


@functools.cache
def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
