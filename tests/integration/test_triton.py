"""A real Triton server on this CPU: the same masks as torch, whatever happens to it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from imis_net.adapters.triton import RemoteEmbedding, TritonSegmenter
from imis_net.checkpoint import save_weights
from imis_net.errors import ImageError, PromptError, ServingError
from imis_net.images import read_volume
from imis_net.prompts import Prediction, Prompt
from imis_net.segmenter import BUNDLE_DIR, TorchSegmenter, load_segmenter
from imis_net.serving import repository as repo
from imis_net.serving import tensors as names
from imis_net.serving import wire
from imis_net.serving.interactive import describe
from imis_net.serving.network_models import KEPT_FEATURES_BYTES
from imis_net.serving.reload import exchange
from imis_net.serving.tritonserver import TritonServer, is_installed

pytestmark = pytest.mark.skipif(not is_installed(), reason="nvidia-pytriton, which holds the server, is not installed")

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "apps" / "imis" / "sample_studies"
WEIGHTS = BUNDLE_DIR / "models" / "imis_net_compact.safetensors"
PAUSE_S = 0.1
PROMPTS = [
    Prompt(point_coords=[[263, 223]], point_labels=[1]),
    Prompt(point_coords=[[263, 223], [200, 200], [300, 260]], point_labels=[1, 0, 0]),
    Prompt(box=[230, 190, 300, 260]),
    Prompt(text="liver"),
    Prompt(point_coords=[[263, 223]], point_labels=[1], box=[230, 190, 300, 260], text="aorta"),
    Prompt(point_coords=[[150, 200]], point_labels=[1]),
]


@pytest.fixture(scope="module")
def local(default_segmenter: TorchSegmenter) -> TorchSegmenter:
    return default_segmenter


@pytest.fixture(scope="module")
def server(local: TorchSegmenter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    repo.build(folder, ROOT / "triton_models", repo.describe(local, {}), WEIGHTS)
    with TritonServer(folder, repo.MODELS) as running:
        yield running


@pytest.fixture
def remote(server: TritonServer) -> TritonSegmenter:
    return TritonSegmenter(server.grpc_url, deadline_s=60)  # patient: here a slow machine is no error


def ct(number: int = 1) -> np.ndarray:
    return read_volume(SAMPLES / f"abdomen_ct_{number}.nii.gz").slice_rgb(0)


def new_image(seed: int) -> np.ndarray:
    """One that no test has shown the server yet."""
    return np.random.default_rng(seed).integers(0, 256, (300, 260, 3)).astype(np.uint8)


def assert_same(got: Prediction, want: Prediction) -> None:
    np.testing.assert_allclose(got.low_res_mask, want.low_res_mask, atol=1e-2)
    union = np.logical_or(got.mask, want.mask).sum()
    assert np.logical_and(got.mask, want.mask).sum() >= 0.999 * union
    assert abs(got.iou_prediction - want.iou_prediction) < 1e-3


def num_encoded(server: TritonServer) -> int:
    with InferenceServerClient(server.grpc_url) as client:
        stats = client.get_inference_statistics(repo.ENCODER, as_json=True)["model_stats"]
    return sum(int(version.get("inference_count", 0)) for version in stats)


def as_inputs(tensors: Mapping[str, np.ndarray]) -> list[InferInput]:
    inputs = []
    for name, tensor in tensors.items():
        given = InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
        given.set_data_from_numpy(tensor)
        inputs.append(given)
    return inputs


def ask(server: TritonServer, **tensors: np.ndarray) -> dict[str, object]:
    """A raw request, as a stranger's program would send it."""
    with InferenceServerClient(server.grpc_url) as client:
        return wire.to_info(client.infer(wire.MODEL, as_inputs(tensors)).as_numpy(wire.INFO))


@pytest.mark.parametrize("shares_memory", [True, False])
def test_the_same_masks_as_torch(server: TritonServer, local: TorchSegmenter, shares_memory: bool) -> None:
    """Breaks if any part of an image or prompt is lost, swapped or zeroed on the way, as numpy 2 would do."""
    remote = TritonSegmenter(server.grpc_url, deadline_s=60, use_shared_memory=shares_memory)
    image = ct(1 if shares_memory else 2)
    embedding = remote.encode_image(image)
    assert isinstance(embedding, RemoteEmbedding)
    assert embedding.features == ()
    wanted = local.predict_batch(local.encode_image(image), PROMPTS)
    continued = Prompt(point_coords=[[263, 223]], point_labels=[1], low_res_mask=wanted[0].low_res_mask)
    for got, want in zip(remote.predict_batch(embedding, PROMPTS), wanted, strict=True):
        assert_same(got, want)
    assert_same(remote.predict(embedding, continued), local.predict(local.encode_image(image), continued))
    assert remote.status()["in_use"] == "triton"
    facts = ("frame", "encoder_digest", "weights_digest", "known_texts")
    assert [getattr(remote, f) for f in facts] == [getattr(local, f) for f in facts]


def test_six_users_cost_one_encoder_run_and_clicks_none(server: TritonServer) -> None:
    """Breaks if users who open one image at once are encoded for one by one, or a click sends the image again."""
    image = new_image(6)
    before = num_encoded(server)

    def work(_: int) -> bytes:
        remote = TritonSegmenter(server.grpc_url, deadline_s=60)
        embedding = remote.encode_image(image)
        masks = [remote.predict(embedding, Prompt(point_coords=[[100 + i, 90]], point_labels=[1])) for i in range(3)]
        return b"".join(p.mask.tobytes() for p in masks)

    with ThreadPoolExecutor(6) as pool:
        answers = set(pool.map(work, range(6)))
    assert len(answers) == 1
    assert num_encoded(server) == before + 1


def test_features_that_the_decoder_no_longer_keeps_are_sent_again(server: TritonServer) -> None:
    """Breaks if a click fails once other images have taken the place of its image's features."""
    remote = TritonSegmenter(server.grpc_url, deadline_s=60)
    embedding = remote.encode_image(ct(3))
    before = remote.predict(embedding, PROMPTS[0])
    shapes = repo.Manifest.read(server.repository / repo.DECODER / "1").feature_shapes
    features = {name: np.zeros(shape, np.float32) for name, shape in zip(names.FEATURES, shapes, strict=False)}
    with InferenceServerClient(server.grpc_url) as client:
        for i in range(KEPT_FEATURES_BYTES // sum(array.nbytes for array in features.values()) + 1):
            client.infer(repo.DECODER, as_inputs({names.FEATURES_KEY: np.array([i, 0]), **features, **ONE}))
    assert_same(remote.predict(embedding, PROMPTS[0]), before)


HANDLE = wire.as_bytes([wire.image_handle(new_image(7))])
ONE = {"point_coords": np.ones((1, 1, 2), np.float32), "point_labels": np.ones((1, 1), np.int64)}
BAD = {
    "an unknown handle": ({"handle": wire.as_bytes(["nobody"]), **ONE}, "NOT_FOUND", "send the image"),
    "10,000 clicks": (
        {
            "handle": HANDLE,
            "point_coords": np.ones((1, 10_000, 2), np.float32),
            "point_labels": np.ones((1, 10_000), np.int64),
        },
        "INVALID_ARGUMENT",
        "too many clicks: got 10000",
    ),
    "not a number": (
        {"handle": HANDLE, **ONE, "point_coords": np.full((1, 1, 2), np.nan, np.float32)},
        "INVALID_ARGUMENT",
        "finite",
    ),
    "outside": (
        {"handle": HANDLE, **ONE, "point_coords": np.full((1, 1, 2), 1e5, np.float32)},
        "INVALID_ARGUMENT",
        "outside the image",
    ),
    "a wrong type": ({"handle": HANDLE, **ONE, "point_coords": np.ones((1, 1, 2))}, "INVALID_ARGUMENT", "data-type"),
    "a wrong shape": ({"handle": HANDLE, "boxes": np.ones((1, 3), np.float32)}, "INVALID_ARGUMENT", "shape"),
    "a wrong mask": (
        {"handle": HANDLE, "low_res_masks": np.ones((1, 9, 9), np.float32)},
        "INVALID_ARGUMENT",
        "previous mask",
    ),
    "an unknown word": ({"handle": HANDLE, "texts": wire.as_bytes(["zebra"])}, "INVALID_ARGUMENT", "unknown text"),
    "another image's name": (
        {"handle": HANDLE, "image": np.zeros((8, 8, 3), np.uint8)},
        "INVALID_ARGUMENT",
        "not the name",
    ),
    "an unknown input": ({"handle": HANDLE, "pixels": np.ones(1, np.float32)}, "INVALID_ARGUMENT", "pixels"),
}


@pytest.mark.parametrize(("tensors", "status", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_its_request_and_no_other(
    server: TritonServer, tensors: dict[str, np.ndarray], status: str, message: str
) -> None:
    """Breaks if bad input is answered with a mask, without a reason, or takes the server along."""
    ask(server, handle=HANDLE, image=new_image(7))
    with pytest.raises(InferenceServerException, match=message) as error:
        ask(server, **tensors)
    assert error.value.status() == f"StatusCode.{status}"
    assert ask(server, handle=HANDLE, **ONE)["cache_hit"] is True


def test_the_client_names_the_callers_fault(remote: TritonSegmenter) -> None:
    """Breaks if a physician's slip is told as a failure of the server, or counted as one."""
    embedding = remote.encode_image(new_image(8))
    with pytest.raises(PromptError, match="unknown text"):
        remote.predict(embedding, Prompt(text="zebra"))
    with pytest.raises(PromptError, match="outside the image"):
        remote.predict(embedding, Prompt(point_coords=[[5000, 5]], point_labels=[1]))
    with pytest.raises(ImageError, match="uint8"):
        remote.encode_image(np.zeros((4, 4)))
    assert remote.status()["reason"] == ""


def changed_weights(path: Path, seed: int, module: str, scale: float = 0.02) -> TorchSegmenter:
    """The default's weights with noise on one of its parts."""
    segmenter = load_segmenter()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in segmenter.network.get_submodule(module).parameters():
            parameter += scale * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    save_weights(segmenter.network, path, {}, half=False)
    return load_segmenter(weights=path)


class Annotators:
    """Users who click on one image until they are told to stop, and what became of their clicks.

    They pause between clicks as people do, and so leave the processor to the server that starts or loads meanwhile.
    """

    def __init__(self, segmenter: TritonSegmenter, embedding: RemoteEmbedding, number: int) -> None:
        self.predictions: list[Prediction] = []
        self.errors: list[Exception] = []
        self._segmenter, self._embedding = segmenter, embedding
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._click) for _ in range(number)]

    def _click(self) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                self.predictions.append(self._segmenter.predict(self._embedding, PROMPTS[0]))
            except Exception as error:
                self.errors.append(error)

    def __enter__(self) -> Annotators:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_new_weights_while_users_click(
    server: TritonServer, remote: TritonSegmenter, local: TorchSegmenter, tmp_path: Path
) -> None:
    """Breaks if a retrained decoder costs one click or one encoder run, or its masks are not the new ones."""
    image = ct(3)
    embedding = remote.encode_image(image)
    trained = changed_weights(tmp_path / "new.safetensors", 1, "mask_decoder")
    before = num_encoded(server)
    with Annotators(remote, embedding, 3) as annotators:
        time.sleep(0.5)
        version = exchange(server.grpc_url, server.repository, repo.describe(trained, {}), tmp_path / "new.safetensors")
        time.sleep(0.5)
    assert annotators.errors == []
    assert num_encoded(server) == before
    assert remote.weights_digest == trained.weights_digest
    old, new = (s.predict(s.encode_image(image), PROMPTS[0]) for s in (local, trained))
    assert not np.allclose(old.low_res_mask, new.low_res_mask, atol=1e-2)
    assert_same(annotators.predictions[0], old)
    assert_same(annotators.predictions[-1], new)
    for prediction in annotators.predictions:  # one set of weights or the other, never some of both
        want = old if np.allclose(prediction.low_res_mask, old.low_res_mask, atol=1e-2) else new
        assert_same(prediction, want)
    repo.withdraw(server.repository, version)  # and back at once
    assert_same(remote.predict(embedding, PROMPTS[0]), old)
    broken = changed_weights(tmp_path / "nan.safetensors", 2, "mask_decoder", float("nan"))
    with pytest.raises(ServingError, match="not finite"):
        exchange(server.grpc_url, server.repository, repo.describe(broken, {}), tmp_path / "nan.safetensors")
    assert_same(remote.predict(embedding, PROMPTS[0]), old)
    for part in ("image_encoder.neck", "image_encoder.trunk"):  # the latter by adapters
        other = changed_weights(tmp_path / "other.safetensors", 3, part)
        with pytest.raises(ServingError, match="encoder_digest"):
            exchange(server.grpc_url, server.repository, repo.describe(other, {}), tmp_path / "other.safetensors")
    assert repo.versions(server.repository) == [1]


FAULTS = ("not finite", "expected uint8", "another image", "deadline")
FAULTY_MODEL = '''
import time
import numpy as np
import triton_python_backend_utils as pb
from imis_net.serving import wire

class TritonPythonModel:
    """Does one thing wrong after another."""
    def initialize(self, args):
        self.num_clicks = 0
    def execute(self, requests):
        return [self.answer(request) for request in requests]
    def answer(self, request):
        handle = wire.as_text(pb.get_input_tensor_by_name(request, wire.HANDLE).as_numpy())
        info = %s
        if handle:
            info["handle"] = handle
        outputs = {
            wire.PACKED_MASKS: np.zeros((1, 512 * 512 // 8), np.uint8),
            wire.LOW_RES_MASKS: np.zeros((1, 128, 128), np.float32),
            wire.IOU_PREDICTIONS: np.zeros(1, np.float32),
            wire.SEMANTIC_EMBEDDINGS: np.zeros((1, 512), np.float32),
        }
        if pb.get_input_tensor_by_name(request, wire.POINT_COORDS) is not None:
            fault = self.num_clicks %% 4
            self.num_clicks += 1
            if fault == 0:
                outputs[wire.LOW_RES_MASKS][0, 5, 5] = np.nan
            elif fault == 1:
                outputs[wire.PACKED_MASKS] = np.zeros((1, 7), np.uint8)
            elif fault == 2:
                info["handle"] = "somebody else's"
            else:
                time.sleep(3)
        tensors = {**outputs, wire.INFO: wire.from_info(info)}
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in tensors.items()])
'''


def test_a_server_that_answers_wrongly_is_never_believed(
    server: TritonServer, local: TorchSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if NaN, a wrong shape, another image's answer or a missed deadline becomes a mask, or is waited for."""
    image = ct(4)
    want = local.predict(local.encode_image(image), PROMPTS[0])
    header = f"import sys\nsys.path.insert(0, {str(BUNDLE_DIR)!r})\n"
    facts = describe(local)
    with InferenceServerClient(server.grpc_url) as client:
        config = json.dumps(client.get_model_config(wire.MODEL, as_json=True)["config"])
        files = {"file:2/model.py": (header + FAULTY_MODEL % facts).encode()}
        client.load_model(wire.MODEL, config=config, files=files)
        try:
            guarded = TritonSegmenter(server.grpc_url, fallback=local, deadline_s=1.0)
            monkeypatch.setattr("imis_net.adapters.triton.MAX_FAILURES", 100)  # this one is to meet each fault
            alone = TritonSegmenter(server.grpc_url, deadline_s=1.0)
            embedding = alone.encode_image(image)
            for fault in FAULTS:
                start = time.monotonic()
                with pytest.raises(ServingError, match=fault):
                    alone.predict(embedding, PROMPTS[0])
                assert time.monotonic() - start < 2
            for _ in FAULTS:
                assert_same(guarded.predict(embedding, PROMPTS[0]), want)
            assert guarded.status()["in_use"] == "local"
        finally:
            client.load_model(wire.MODEL)


def test_killed_and_restarted_under_load(server: TritonServer, local: TorchSegmenter) -> None:
    """Breaks if a crash of the server costs a user one click, shows one wrong mask, or is not recovered from."""
    image = ct(1)
    want = local.predict(local.encode_image(image), PROMPTS[0])
    guarded = TritonSegmenter(server.grpc_url, fallback=local, deadline_s=20)
    embedding = guarded.encode_image(image)
    assert isinstance(embedding, RemoteEmbedding)
    with Annotators(guarded, embedding, 3) as annotators:
        time.sleep(0.5)
        server.kill()
        time.sleep(1)
        assert guarded.status()["in_use"] == "local"
        assert "unavailable" in str(guarded.status()["reason"])
        server.start()
        deadline = time.monotonic() + 30
        while guarded.status()["in_use"] != "triton" and time.monotonic() < deadline:
            time.sleep(0.1)
    assert guarded.status()["in_use"] == "triton"
    assert annotators.errors == []
    for prediction in annotators.predictions:
        assert_same(prediction, want)


def test_a_dead_server_is_a_typed_error_at_once(local: TorchSegmenter) -> None:
    """Breaks if nobody listening means waiting, or the fall-back is not used from the start."""
    start = time.monotonic()
    with pytest.raises(ServingError, match="unavailable"):
        TritonSegmenter("127.0.0.1:1")
    assert time.monotonic() - start < 2
    guarded = TritonSegmenter("127.0.0.1:1", fallback=local)
    image = ct(1)
    want = local.predict(local.encode_image(image), PROMPTS[0])
    assert_same(guarded.predict(guarded.encode_image(image), PROMPTS[0]), want)
    assert guarded.status()["in_use"] == "local"


def test_another_model_is_not_mixed_with_the_local_one(server: TritonServer, tmp_path: Path) -> None:
    """Breaks if masks of one encoder's server and another's fall-back alternate unnoticed."""
    other = changed_weights(tmp_path / "other.safetensors", 4, "image_encoder.neck")
    guarded = TritonSegmenter(server.grpc_url, fallback=other, deadline_s=60)
    assert guarded.status()["in_use"] == "local"
    assert "another model" in str(guarded.status()["reason"])


def test_a_port_in_use_is_said_at_once(server: TritonServer) -> None:
    """Breaks if a second server is started on a port that the first one has."""
    with pytest.raises(ServingError, match=f"grpc port {server.grpc_port} is in use"):
        TritonServer(server.repository, repo.MODELS, grpc_port=server.grpc_port).start()


def test_half_a_version_does_not_start(server: TritonServer, tmp_path: Path) -> None:
    """Breaks if weights that were not written to the end are served, or the failure does not say which."""
    folder = server.repository / repo.DECODER / "99"
    folder.mkdir()
    (folder / "model.py").write_bytes((ROOT / "triton_models" / repo.DECODER / "1" / "model.py").read_bytes())
    with InferenceServerClient(server.grpc_url) as client:
        try:
            with pytest.raises(InferenceServerException, match=r"imis_decoder/99: no whole manifest.json"):
                client.load_model(repo.DECODER)
        finally:
            shutil.rmtree(folder)
            client.load_model(repo.DECODER)
    assert TritonSegmenter(server.grpc_url, deadline_s=60).encode_image(new_image(9)).original_size == (300, 260)
