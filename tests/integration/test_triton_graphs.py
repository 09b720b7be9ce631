"""A real Triton server that runs graphs: torch's masks, and new weights without tracing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imis_net.adapters.graph_runtimes import Build
from imis_net.adapters.triton import TritonSegmenter
from imis_net.adapters.triton_trunk import TritonTrunk
from imis_net.checkpoint import save_weights
from imis_net.export import export
from imis_net.images import read_volume
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter, load_segmenter, trunk_digest, weights_path
from imis_net.serving import repository as repo
from imis_net.serving.reload import exchange
from imis_net.serving.tritonserver import TritonServer, is_installed
from imis_net.training.trunk_features import OwnTrunk

pytestmark = pytest.mark.skipif(not is_installed(), reason="nvidia-pytriton, which holds the server, is not installed")

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "apps" / "imis" / "sample_studies" / "abdomen_ct_1.nii.gz"
CLICK = Prompt(point_coords=[[263, 223]], point_labels=[1])
PROMPTS = [
    CLICK,
    Prompt(box=[230, 190, 300, 260]),
    Prompt(text="liver"),
    Prompt(box=[230, 190, 300, 260], text="aorta"),
]


def assert_same(remote: TritonSegmenter, local: TorchSegmenter, image: np.ndarray) -> None:
    wanted = local.predict_batch(local.encode_image(image), PROMPTS)
    for got, want in zip(remote.predict_batch(remote.encode_image(image), PROMPTS), wanted, strict=True):
        np.testing.assert_allclose(got.low_res_mask, want.low_res_mask, atol=1e-2)
        assert abs(got.iou_prediction - want.iou_prediction) < 1e-3


def test_graphs_behind_triton_answer_as_torch_and_take_new_weights(
    default_segmenter: TorchSegmenter, default_graphs: Path, tmp_path: Path
) -> None:
    """Breaks if a model runs another graph than its manifest says, a training gets other maps than the trunk's, or
    exchanged weights keep the old graphs."""
    build, image = Build("onnxruntime"), read_volume(SAMPLE).slice_rgb(0)
    repository = tmp_path / "repository"
    manifest = repo.describe(default_segmenter, {}, build)
    repo.build(repository, ROOT / "triton_models", manifest, weights_path(manifest.name), default_graphs)
    assert not list((repository / repo.DECODER).rglob("*.safetensors")), "the decoder is its graphs"
    retrained = load_segmenter().network
    with torch.no_grad():
        retrained.mask_decoder.iou_token.weight.add_(0.1)
    save_weights(retrained, tmp_path / "new.safetensors", {})
    (tmp_path / "before").symlink_to(default_graphs)
    export(retrained, tmp_path / "after")
    new = TorchSegmenter(retrained)
    with TritonServer(repository, repo.MODELS) as server:
        remote = TritonSegmenter(server.grpc_url, deadline_s=60)
        assert_same(remote, default_segmenter, image)
        network = default_segmenter.network
        trunk = TritonTrunk(server.grpc_url, network, trunk_digest(network))
        for got, want in zip(trunk(image), OwnTrunk(network)(image), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
        facts = repo.describe(new, {}, build)
        assert exchange(server.grpc_url, repository, facts, tmp_path / "new.safetensors", tmp_path / "after") == 2
        again = TritonSegmenter(server.grpc_url, deadline_s=60)
        assert again.weights_digest == new.weights_digest
        assert_same(again, new, image)
