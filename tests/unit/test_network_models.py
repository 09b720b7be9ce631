"""The networks as Triton runs them, without Triton: their products together are the segmenter's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from imis_net.checkpoint import save_weights
from imis_net.errors import PromptError, ServingError, UnknownHandleError
from imis_net.networks.build import imis_net_compact
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter
from imis_net.serving import repository as repo
from imis_net.serving import tensors as names
from imis_net.serving.kept_features import KeptFeatures
from imis_net.serving.network_models import DecoderModel, EncoderModel, NetworkModel, TextModel
from imis_net.serving.remote_network import CurrentVersion

TEMPLATES = Path(__file__).resolve().parents[2] / "triton_models"
KINDS: dict[str, type[NetworkModel]] = {repo.ENCODER: EncoderModel, repo.TEXT: TextModel, repo.DECODER: DecoderModel}


@pytest.fixture(scope="module")
def segmenter() -> TorchSegmenter:
    torch.manual_seed(0)
    return TorchSegmenter(imis_net_compact(image_size=64))


@pytest.fixture(scope="module")
def repository(segmenter: TorchSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_weights(segmenter.network, folder / "w.safetensors", {})
    repo.build(folder / "repository", TEMPLATES, repo.describe(segmenter, {"image_size": 64}), folder / "w.safetensors")
    return folder / "repository"


def test_the_parts_make_the_whole(segmenter: TorchSegmenter, repository: Path) -> None:
    """Breaks if an input or output is lost, misnamed or in another order between the models."""
    models = {name: kind(repository / name / "1") for name, kind in KINDS.items()}

    def call(model: str, version: int, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        answer = models[model].run(inputs)
        return [answer[name] for name in outputs]

    remote = CurrentVersion(repository, call, lambda model, version: True)()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    prompts = [
        Prompt(point_coords=[[5, 6], [30, 40]], point_labels=[1, 0]),
        Prompt(box=[3, 4, 40, 44], text="liver"),
        Prompt(point_coords=[[5, 6]], point_labels=[1], low_res_mask=np.full((16, 16), -2.0)),
        Prompt(text="spleen"),
    ]
    wanted = segmenter.predict_batch(segmenter.encode_image(image), prompts)
    for got, want in zip(remote.predict_batch(remote.encode_image(image), prompts), wanted, strict=True):
        np.testing.assert_allclose(got.low_res_mask, want.low_res_mask, atol=1e-5)
        np.testing.assert_array_equal(got.mask, want.mask)
        assert got.iou_prediction == pytest.approx(want.iou_prediction, abs=1e-6)
    with pytest.raises(PromptError, match="zebra"):
        remote.predict(remote.encode_image(image), Prompt(text="zebra"))


def test_features_go_to_the_decoder_once(repository: Path) -> None:
    """Breaks if each click carries an embedding of megabytes from process to process, if a decoder that forgot it or
    was started anew fails a click, or if a key brings another image's features."""
    models = {name: kind(repository / name / "1") for name, kind in KINDS.items()}
    sent = []

    def call(model: str, version: int, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        sent.append((model, set(inputs)))
        answer = models[model].run(inputs)
        return [answer[name] for name in outputs]

    remote = CurrentVersion(repository, call, lambda model, version: True)()
    random = np.random.default_rng(0)
    images = [remote.encode_image(random.integers(0, 256, (50, 70, 3)).astype(np.uint8)) for _ in range(2)]
    click = Prompt(point_coords=[[5, 6]], point_labels=[1])
    first = [remote.predict(image, click).low_res_mask for image in images]
    assert all(set(names.FEATURES) <= given for model, given in sent if model == repo.DECODER)
    sent.clear()
    again = [remote.predict(image, click).low_res_mask for image in images]
    assert sent == [(repo.DECODER, {names.FEATURES_KEY, names.POINT_COORDS, names.POINT_LABELS})] * 2
    models[repo.DECODER] = DecoderModel(repository / repo.DECODER / "1")
    anew = [remote.predict(image, click).low_res_mask for image in images]
    np.testing.assert_array_equal([again, anew], [first, first])
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_kept_features_are_bounded_and_the_oldest_go() -> None:
    """Breaks if a decoder's memory grows with every image, or one that is in use goes before one that is not."""
    kept = KeptFeatures(max_bytes=3 * 80)
    keys = [np.array([n, 0]) for n in range(4)]
    for key in keys[:3]:
        kept.keep(key, {"embedding": np.full(10, key[0], np.float64)})
    assert kept.features(keys[0])["embedding"][0] == 0
    kept.keep(keys[3], {"embedding": np.full(10, 3.0)})
    with pytest.raises(UnknownHandleError):
        kept.features(keys[1])
    assert [kept.features(keys[n])["embedding"][0] for n in (0, 2, 3)] == [0, 2, 3]


def test_weights_that_give_no_numbers_are_not_served(
    segmenter: TorchSegmenter, repository: Path, tmp_path: Path
) -> None:
    """Breaks if a training that diverged takes the place of a decoder that works."""
    broken = imis_net_compact(image_size=64)
    with torch.no_grad():
        broken.mask_decoder.iou_token.weight.fill_(float("nan"))
    save_weights(broken, tmp_path / "w.safetensors", {})
    version = repo.publish(repository, repo.describe(segmenter, {"image_size": 64}), tmp_path / "w.safetensors")
    with pytest.raises(ServingError, match=f"imis_decoder/{version}: .* not finite"):
        DecoderModel(repository / repo.DECODER / str(version))
    repo.withdraw(repository, version)


def test_graphs_are_run_without_torch() -> None:
    """Breaks if loading new weights takes seconds of every user's processor again."""
    program = "import sys, imis_net.serving.network_models; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(TEMPLATES.parent / "bundles" / "imis_net")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
