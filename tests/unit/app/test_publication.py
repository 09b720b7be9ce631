"""lib.publication: what the registry says is what answers, hot, and only if it can be loaded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from imis_net.checkpoint import save_weights
from imis_net.errors import CheckpointError
from imis_net.networks.build import imis_net_compact
from imis_net.retraining.cycle import adopt
from imis_net.retraining.registry import ModelRegistry
from imis_net.segmenter import load_segmenter
from lib.config import Config
from lib.infer import Engine
from lib.publication import Publication, served_weights

SIDE = 64


def _weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_weights(imis_net_compact(SIDE), path, {}, half=True)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(weights=_weights(tmp_path / "base.safetensors", 0), image_size=SIDE)


def _served(config: Config, root: Path) -> tuple[Engine, Publication]:
    path = served_weights(config, root)
    engine = Engine(load_segmenter(config.model, path, "cpu", **config.architecture), 10_000_000)
    return engine, Publication(config, root, engine)


def _publish(config: Config, root: Path, seed: int) -> str:
    registry = ModelRegistry(root / "registry")
    base = adopt(registry, config.weights)  # type: ignore[arg-type]
    digest = registry.add(_weights(root / f"{seed}.safetensors", seed), {"base": base})
    registry.publish(digest, "better")
    return digest


def test_a_publication_is_served_hot_and_taken_back(config: Config, tmp_path: Path) -> None:
    """Breaks if a new version needs a restart, or a rollback answers with other weights than before."""
    engine, publication = _served(config, tmp_path)
    before = engine.segmenter.weights_digest
    digest = _publish(config, tmp_path, 1)
    publication.follow()
    assert publication.digest == digest
    assert engine.segmenter.weights_digest != before
    publication.rollback("a test")
    assert engine.segmenter.weights_digest == before
    with pytest.raises(CheckpointError, match="nothing to roll back"):
        publication.rollback("a test")


def test_a_restart_serves_what_was_published(config: Config, tmp_path: Path) -> None:
    """Breaks if a restart goes back to the weights of the first day."""
    assert served_weights(config, tmp_path) == config.weights
    digest = _publish(config, tmp_path, 1)
    engine, publication = _served(config, tmp_path)
    assert publication.digest == digest
    assert (
        engine.segmenter.weights_digest
        == load_segmenter(config.model, tmp_path / "1.safetensors", "cpu", image_size=SIDE).weights_digest
    )


def test_what_cannot_be_loaded_is_told_and_not_served(config: Config, tmp_path: Path) -> None:
    """Breaks if a version that is gone or damaged stops the server, or is not said anywhere."""
    engine, publication = _served(config, tmp_path)
    before = engine.segmenter.weights_digest
    digest = _publish(config, tmp_path, 1)
    (tmp_path / "registry" / "versions" / digest / "weights.safetensors").write_bytes(b"torn")
    publication.watch()
    end = time.monotonic() + 20
    while not publication.error and time.monotonic() < end:
        time.sleep(0.1)
    publication.close()
    assert "not a readable safetensors" in publication.error
    assert engine.segmenter.weights_digest == before
