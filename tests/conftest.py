"""What many tests share and none changes: made once, on first use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from imis_net.export import export
from imis_net.segmenter import TorchSegmenter, load_segmenter


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
