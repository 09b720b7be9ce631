"""lib.publication: what the registry says is what answers, hot, and only if it can be loaded."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imis_net.checkpoint import save_weights
from imis_net.errors import CheckpointError, PromptError
from imis_net.networks.build import imis_net_compact
from imis_net.prompts import Prompt
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


@pytest.mark.parametrize("segmenter", ["onnxruntime", "openvino"])
def test_graphs_restart_with_what_was_published_too(config: Config, tmp_path: Path, segmenter: str) -> None:
    """Breaks if a restart with graphs serves the first day's weights while the registry names others."""
    digest = _publish(config, tmp_path, 1)
    path = served_weights(replace(config, segmenter=segmenter), tmp_path)
    assert path == ModelRegistry(tmp_path / "registry").weights(digest)


def test_triton_is_never_offered_a_decoder_of_another_encoder(config: Config, tmp_path: Path) -> None:
    """Breaks if people are told to reload a decoder that no encoder of the running Triton fits."""
    engine, _ = _served(config, tmp_path)
    publication = Publication(replace(config, segmenter="triton"), tmp_path, engine)
    registry = ModelRegistry(tmp_path / "registry")
    base = adopt(registry, config.weights)  # type: ignore[arg-type]
    start = load_file(config.weights)  # type: ignore[arg-type]
    said = {}
    for part in ("mask_decoder.", "image_encoder.trunk."):
        changed = {k: v + 0.5 if k.startswith(part) and v.is_floating_point() else v for k, v in start.items()}
        save_file(changed, tmp_path / "changed.safetensors")
        registry.publish(registry.add(tmp_path / "changed.safetensors", {"base": base}), "better")
        publication.follow()
        said[part] = publication.error
    assert "scripts/reload_triton.py --weights" in said["mask_decoder."]
    assert "image encoder is another" in said["image_encoder.trunk."]
    assert "reload" not in said["image_encoder.trunk."]
    assert (
        engine.segmenter.weights_digest
        == load_segmenter(config.model, config.weights, "cpu", image_size=SIDE).weights_digest
    )


def test_a_new_trunk_is_served_hot_and_taken_back(config: Config, tmp_path: Path) -> None:
    """Breaks if embeddings of the old trunk meet the decoder of the new one."""
    engine, publication = _served(config, tmp_path)
    image = np.zeros((40, 50, 3), np.uint8)
    kept = engine.segmenter.encode_image(image)
    start = load_file(config.weights)  # type: ignore[arg-type]
    trunk = {k: v + 0.1 if k.endswith("conv_pw.weight") else v for k, v in start.items()}
    save_file(trunk, tmp_path / "changed.safetensors")
    registry = ModelRegistry(tmp_path / "registry")
    base = adopt(registry, config.weights)  # type: ignore[arg-type]
    registry.publish(registry.add(tmp_path / "changed.safetensors", {"base": base}), "better")
    publication.follow()
    box = Prompt(box=np.array([5, 5, 30, 30], np.float32))
    with pytest.raises(PromptError, match="another encoder"):
        engine.segmenter.predict(kept, box)
    publication.rollback("a test")
    assert engine.segmenter.predict(kept, box).mask.shape == (40, 50)
