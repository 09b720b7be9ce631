"""lib.config: a deployment's typing mistake stops the server at once, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib.config import Config, read_config


def test_defaults_are_the_compact_model_and_a_quarter_of_the_memory() -> None:
    """Breaks when a server without --conf would need a file that is not shipped, or may take all memory."""
    config = read_config({})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (config.model, config.weights, config.device) == ("imis_net_compact", None, "cpu")
    assert config.cache_bytes == memory // 4


def test_values_are_typed(tmp_path: Path) -> None:
    """Breaks when a setting is ignored or stays the string that MONAI Label passes."""
    weights = tmp_path / "w.safetensors"
    weights.touch()
    conf = {
        "weights": str(weights),
        "cache_bytes": "1000",
        "threads": "2",
        "labels": "liver, left kidney",
        "min_iou": "0.25",
        "previous_mask": "False",
        "image_size": "256",
        "server_mode": "true",
    }
    assert read_config(conf) == Config(
        weights=weights,
        cache_bytes=1000,
        threads=2,
        labels=("liver", "left kidney"),
        min_iou=0.25,
        previous_mask=False,
        image_size=256,
    )
    assert read_config(conf).architecture == {"image_size": 256}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("modle", "imis_net_compact", "did you mean 'model'"),
        ("model", "unet", "expected one of imis_net_compact"),
        ("weights", "/nowhere/w.safetensors", "existing file"),
        ("cache_bytes", "-1", "whole number"),
        ("cache_bytes", "4GB", "whole number"),
        ("threads", "", "whole number"),
        ("device", "toaster", "toaster"),
        ("min_iou", "2", "from 0 to 1"),
        ("min_iou", "nan", "from 0 to 1"),
        ("min_iou", "high", "min_iou"),
        ("previous_mask", "maybe", "true or false"),
        ("retrain", "at two", "expected five cron fields"),
        ("retrain", "61 2 * * *", "retrain.*expected five cron fields"),
        ("retrain_after", "some", "whole number"),
        ("retrain_minutes", "0", "more than 0"),
        ("retrain_adapters", "65", "got 65, expected a rank from 1 to 64"),
        ("retrain_adapters", "-1", "whole number"),
        ("retrain_gpu_share", "0", "more than 0"),
        ("labels", " , ", "names"),
        ("segmenter", "tensorflow", "expected one of torch"),
        ("triton_url", "http://127.0.0.1:8001", "HOST:PORT"),
        ("triton_url", "localhost", "HOST:PORT"),
        ("triton_deadline_s", "0", "more than 0"),
        ("triton_deadline_s", "soon", "triton_deadline_s"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(key: str, value: str, message: str) -> None:
    """Breaks when a bad setting is taken in silence, or its error does not name the key."""
    with pytest.raises(ValueError, match=message) as error:
        read_config({key: value})
    assert f"--conf {key}" in str(error.value)


def test_graphs_of_the_cpu_are_not_asked_to_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a server with both starts, and dies of a device mismatch while it exports."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert read_config({"device": "cuda"}).device == "cuda"
    with pytest.raises(ValueError, match=r"--conf segmenter onnxruntime: runs on the CPU, .* 'cuda'"):
        read_config({"device": "cuda", "segmenter": "onnxruntime"})


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"auth": "password"}, "expected none, tokens or oidc"),
        ({"auth": "tokens"}, "expected --conf tokens_file"),
        ({"auth": "oidc"}, "expected --conf oidc_issuer"),
        ({"workers": "0"}, "at least 1"),
        ({"let_anybody_in": "true"}, "expected yes or no"),
        ({"oidc_issuer": "keycloak.example"}, "expected an address"),
    ],
)
def test_who_gets_in_is_never_guessed(conf: dict[str, str], message: str) -> None:
    """Breaks when a half-said setting of the log-in opens the server or starts it without one."""
    with pytest.raises(ValueError, match=message):
        read_config(conf)
