"""What many tests share and none changes: made once, on first use."""

from __future__ import annotations

from pathlib import Path

import pytest

from imis_net.export import export
from imis_net.segmenter import TorchSegmenter, load_segmenter


@pytest.fixture(scope="session")
def default_segmenter() -> TorchSegmenter:
    """The shipped model; a test that changes weights loads its own."""
    return load_segmenter()


@pytest.fixture(scope="session")
def default_graphs(default_segmenter: TorchSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model's graphs: about a minute of tracing, so never made twice."""
    folder = tmp_path_factory.mktemp("graphs") / default_segmenter.weights_digest
    export(default_segmenter.network, folder)
    return folder
