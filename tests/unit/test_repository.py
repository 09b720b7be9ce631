"""The model repository on disk, and which of its versions answers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from imis_net.errors import ServingError
from imis_net.serving import repository as repo
from imis_net.serving.remote_network import CurrentVersion
from imis_net.serving.repository import Manifest

TEMPLATES = Path(__file__).resolve().parents[2] / "triton_models"
SHAPES = ((1, 192, 4, 4), (1, 48, 8, 8), (1, 24, 16, 16))
MANIFEST = Manifest("imis_net_compact", 64, SHAPES, "encoder", "weights 1", ("liver",), {"image_size": 64})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def repository(tmp_path: Path, weights: Path) -> Path:
    folder = tmp_path / "repository"
    repo.build(folder, TEMPLATES, MANIFEST, weights)
    return folder


def retrained(number: int) -> Manifest:
    return dataclasses.replace(MANIFEST, weights_digest=f"weights {number}")


def test_every_model_is_there_whole(repository: Path) -> None:
    """Breaks if a model that the server is told to load lacks its code, weights or description."""
    for model in repo.MODELS:
        assert (repository / model / "config.pbtxt").is_file()
        assert (repository / model / "1" / "model.py").is_file()
    for model in (repo.ENCODER, *repo.RELOADED):
        assert (repository / model / "1" / repo.WEIGHTS).read_bytes() == b"weights"
        assert Manifest.read(repository / model / "1") == MANIFEST


def test_versions_are_added_kept_and_retired(repository: Path, weights: Path) -> None:
    """Breaks if new weights overwrite those in use, or old ones fill the disk."""
    assert [repo.publish(repository, retrained(n), weights) for n in (2, 3)] == [2, 3]
    assert repo.versions(repository) == [3, 2, 1]
    repo.retire(repository)
    assert repo.versions(repository) == [3, 2]
    repo.withdraw(repository, 3)
    assert repo.versions(repository) == [2]


@pytest.mark.parametrize(
    "other",
    [{"encoder_digest": "another"}, {"image_size": 128}, {"name": "imis_net_vit_b"}],
    ids=lambda o: next(iter(o)),
)
def test_weights_of_another_encoder_are_refused(repository: Path, weights: Path, other: Mapping[str, object]) -> None:
    """Breaks if a decoder is put behind an encoder that it was not trained with: every mask would be wrong."""
    with pytest.raises(ServingError, match=f"{next(iter(other))} .*expected"):
        repo.publish(repository, dataclasses.replace(MANIFEST, **other), weights)
    assert repo.versions(repository) == [1]


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"name": "x", "known_texts": null}'])
def test_half_a_description_is_an_error(repository: Path, content: str | None) -> None:
    """Breaks if a version that was not written to its end is taken for one."""
    file = repository / repo.DECODER / "1" / repo.MANIFEST
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(ServingError, match="imis_decoder/1: no whole manifest"):
        Manifest.read(file.parent)


def never_called(model: str, version: int, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list:
    raise AssertionError("a network was run")


def test_a_version_answers_once_it_is_loaded_whole(repository: Path, weights: Path) -> None:
    """Breaks if a click meets a decoder of one version and a text encoder of another, or one that is still loading."""
    loaded = {(model, 1) for model in repo.RELOADED}
    current = CurrentVersion(repository, never_called, lambda model, version: (model, version) in loaded)
    first = current()
    assert current() is first
    repo.publish(repository, retrained(2), weights)
    loaded.add((repo.TEXT, 2))
    assert current() is first
    loaded.add((repo.DECODER, 2))
    assert current().weights_digest == "weights 2"
    repo.withdraw(repository, 2)
    assert current().weights_digest == "weights 1"
    assert first.weights_digest == "weights 1"


def test_no_loaded_version_is_said(repository: Path) -> None:
    """Breaks if requests hang or fail obscurely while nothing is loaded."""
    current = CurrentVersion(repository, never_called, lambda model, version: False)
    with pytest.raises(ServingError, match="no version of imis_decoder is loaded"):
        current()


def test_a_decoder_of_another_encoder_on_disk_is_passed_over(repository: Path) -> None:
    """Breaks if a version that was copied in by hand answers with embeddings that it cannot read."""
    for model in repo.RELOADED:
        shutil.copytree(repository / model / "1", repository / model / "2")
        file = repository / model / "2" / repo.MANIFEST
        file.write_text(file.read_text().replace('"encoder"', '"another"'))
    current = CurrentVersion(repository, never_called, lambda model, version: True)
    assert current().network.version == 1
