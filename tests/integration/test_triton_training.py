"""Training on the trunk of a real Triton server: the same result as with a trunk of one's own, and none in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imis_net.adapters.triton_trunk import TritonTrunk
from imis_net.checkpoint import save_weights, trunk_tensors
from imis_net.embedding_disk import EmbeddingDisk
from imis_net.errors import ServingError
from imis_net.networks.build import imis_net_compact
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import load_segmenter, trunk_digest
from imis_net.serving import repository as repo
from imis_net.serving.tritonserver import TritonServer, is_installed
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuning
from imis_net.training.trunk_features import OwnTrunk

pytestmark = pytest.mark.skipif(not is_installed(), reason="nvidia-pytriton, which holds the server, is not installed")

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64


def record(patient: str) -> Record:
    label = np.zeros((50, 60), np.uint16)
    label[10:30, 10 : 30 + int(patient)] = 1
    image = np.where(label[..., None] > 0, 200, 20).repeat(3, axis=2).astype(np.uint8)
    return Record(f"case {patient}", patient, "a set", "CT", image, ((label, {1: "liver"}),))


RECORDS = [record(str(n)) for n in range(4)]


def weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    save_weights(imis_net_compact(SIDE), path, {}, half=True)
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("weights") / "start.safetensors", 0)


@pytest.fixture(scope="module")
def server(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    local = load_segmenter("imis_net_compact", start, image_size=SIDE)
    repo.build(repository, ROOT / "triton_models", repo.describe(local, {"image_size": SIDE}), start)
    with TritonServer(repository, [repo.ENCODER]) as running:
        yield running.grpc_url


def tuner(folder: Path, url: str = "") -> Tuner:
    settings = FineTuning(max_steps=6, validate_every=2, learning_rate=0.01)
    return Tuner("imis_net_compact", EmbeddingDisk(folder, 10**8), settings, {"image_size": SIDE}, trunk_url=url)


def trained(made: Tuner, start: Path, path: Path) -> dict[str, torch.Tensor]:
    made.train(start, RECORDS[:2], RECORDS[2:3], path)
    return load_file(path)


def test_the_maps_are_the_trunks_own(server: str, start: Path) -> None:
    """Breaks if an image reaches the trunk otherwise than in this process, or its maps come back mixed up."""
    network = load_segmenter("imis_net_compact", start, image_size=SIDE).network
    remote = TritonTrunk(server, network, trunk_digest(network))
    for got, want in zip(remote(RECORDS[0].image), OwnTrunk(network)(RECORDS[0].image), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_training_without_a_trunk_makes_the_same_candidate(server: str, start: Path, tmp_path: Path) -> None:
    """Breaks if the trunk is in this process after all, the candidate lacks it, or the gate asks another network."""
    here, there = tuner(tmp_path / "here"), tuner(tmp_path / "there", server)
    assert not list(there._loaded(start)[0].image_encoder.trunk.parameters())
    ours, theirs = (
        trained(made, start, tmp_path / f"{name}.safetensors") for name, made in (("h", here), ("t", there))
    )
    before = load_file(start)
    assert ours.keys() == theirs.keys() == before.keys()
    assert any(not theirs[key].equal(before[key]) for key in theirs)
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=2e-3)  # two processes' maps, both halved
        assert theirs[key].equal(before[key]) or not key.startswith("image_encoder.trunk.")
    scores = [made.answers(tmp_path / "h.safetensors", RECORDS[3:]) for made in (here, there)]
    assert [s.dice for s in scores[0]] == pytest.approx([s.dice for s in scores[1]], abs=0.02)
    assert there.num_encoded == here.num_encoded == 4
    again = tuner(tmp_path / "there", server)
    trained(again, start, tmp_path / "again.safetensors")
    assert again.num_encoded == 0  # kept on disk, under the digest that a trunk of one's own has


def test_another_trunk_is_refused_and_the_own_one_runs(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks if a decoder is trained on the maps of a trunk that it will never see."""
    stranger = weights(tmp_path / "stranger.safetensors", 1)
    made = tuner(tmp_path / "there", server)
    with caplog.at_level(logging.WARNING):
        ours = trained(made, stranger, tmp_path / "t.safetensors")
    assert "has another trunk" in caplog.text
    expected = trained(tuner(tmp_path / "here"), stranger, tmp_path / "h.safetensors")
    assert all(ours[key].equal(expected[key]) for key in expected)


def test_without_a_server_the_training_goes_on(start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Breaks if a Triton that is down costs the night's retraining, or is waited for at every image."""
    network = imis_net_compact(SIDE, with_trunk=False)
    nowhere = TritonTrunk("127.0.0.1:9", network, trunk_digest(network, trunk_tensors(start)), deadline_s=0.5)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:9"):
        nowhere(RECORDS[0].image)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        ours = trained(tuner(tmp_path / "there", "127.0.0.1:9"), start, tmp_path / "t.safetensors")
    assert time.monotonic() - began < 60
    assert caplog.text.count("the trunk runs in this process") == 1
    expected = trained(tuner(tmp_path / "here"), start, tmp_path / "h.safetensors")
    assert all(ours[key].equal(expected[key]) for key in expected)
