"""Deployment settings: the only reader of ``--conf KEY VALUE``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path

import torch

from imis_net.networks.build import BUILDERS
from imis_net.retraining.schedule import check_cron
from imis_net.segmenter import DEFAULT_MODEL
from imis_net.training.low_rank import check_rank

SEGMENTERS = ("torch", "onnxruntime", "openvino", "triton")
ON_CPU = ("onnxruntime", "openvino")
_HOST_KEYS = {"server_mode"}
"""Read by MONAI Label itself."""


def _quarter_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


@dataclass(frozen=True)
class Config:
    """What a deployment may choose; each field is a ``--conf`` key.

    Attributes:
        model: a name of ``imis_net.networks.build.BUILDERS``.
        weights: a safetensors file; None is the bundle's own file of that name.
        image_size: side of the model frame in pixels; 0 is the model's own.
        decoder_dim: decoder width of the ViT models; 0 is the model's own.
        device: a torch device.
        cache_bytes: bound of all caches together: half for image embeddings, half for decoded volumes.
        threads: torch threads per operation; 0 leaves torch's choice.
        segmenter: what runs the networks: torch, onnxruntime or openvino in this process, or a triton server.
        triton_url: the server's gRPC address.
        triton_deadline_s: what Triton may take for a click or an image before torch answers in its place.
        labels: names that viewers offer; () is what the model was trained on.
        min_iou: when every category is asked for at once, those with a lower predicted IoU are left out.
        previous_mask: each click of a prompt builds on the mask of those before it.
        workers: threads that segment, convert and encode.
        max_queued: requests that may wait for one; a further one is answered 429.
        state_dir: where embeddings and prompts outlive the server; None is a hidden folder beside the studies.
        disk_cache_bytes: bound of the embeddings on disk; 0 keeps none.
        prefetch: slices on either side of the one worked on that are encoded ahead; 0 is none.
        auth: how users show who they are: none (only this computer is let in), tokens or oidc.
        tokens_file: users and hashed tokens, made with scripts/make_token.py.
        oidc_issuer: the realm's address, as in the tokens' "iss".
        oidc_audience: what the tokens' "aud" or "azp" must be.
        hosts: names by which a browser may call the server besides this computer's own.
        let_anybody_in: "yes" opens the server to the whole network without asking who is there.
        retrain: when to retrain, as five cron fields in the server's time zone; "" is never by the clock.
        retrain_after: new labels after which to retrain; 0 is never by count.
        retrain_minutes: what fine-tuning may take; retrain_steps: the most steps of it.
        retrain_adapters: rank of the adapters by which the trunk learns too; 0 is none.
        retrain_threads: torch threads of a training or scoring process; 0 is half of the cores.
        retrain_gpu_share: of a GPU's memory, what such a process may take at most.
    """

    model: str = DEFAULT_MODEL
    weights: Path | None = None
    image_size: int = 0
    decoder_dim: int = 0
    device: str = "cpu"
    cache_bytes: int = field(default_factory=_quarter_of_memory)
    threads: int = 0
    segmenter: str = "torch"
    triton_url: str = "127.0.0.1:8001"
    triton_deadline_s: float = 2.0
    labels: tuple[str, ...] = ()
    min_iou: float = 0.5
    previous_mask: bool = True
    workers: int = field(default_factory=lambda: max(4, os.cpu_count() or 1))
    max_queued: int = 64
    state_dir: Path | None = None
    disk_cache_bytes: int = field(default_factory=_quarter_of_memory)
    prefetch: int = 2
    auth: str = "none"
    tokens_file: Path | None = None
    oidc_issuer: str = ""
    oidc_audience: str = "monailabel-app"
    hosts: tuple[str, ...] = ()
    let_anybody_in: bool = False
    retrain: str = ""
    retrain_after: int = 0
    retrain_minutes: float = 10.0
    retrain_steps: int = 2000
    retrain_adapters: int = 0
    retrain_threads: int = 0
    retrain_gpu_share: float = 0.5

    @property
    def architecture(self) -> dict[str, int]:
        """Builder arguments that the deployment set."""
        chosen = {"image_size": self.image_size, "decoder_dim": self.decoder_dim}
        return {key: value for key, value in chosen.items() if value}


def read_config(conf: Mapping[str, str]) -> Config:
    """MONAI Label's string pairs as a ``Config``.

    Raises:
        ValueError: an unknown key, or a value that cannot be used; says which, what was given and what is accepted.
    """
    known = [f.name for f in fields(Config)]
    chosen: dict[str, object] = {}
    for key, value in conf.items():
        if key in _HOST_KEYS:
            continue
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--conf {key}: unknown key, expected one of {', '.join(known)}{hint}")
        try:
            chosen[key] = _READERS[key](value.strip())
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"--conf {key}: {error}") from error
    config = Config(**chosen)  # type: ignore[arg-type]
    needed = {"tokens": "tokens_file", "oidc": "oidc_issuer"}.get(config.auth)
    if needed and not getattr(config, needed):
        raise ValueError(f"--conf auth {config.auth}: expected --conf {needed} as well")
    if config.segmenter in ON_CPU and torch.device(config.device).type != "cpu":
        raise ValueError(
            f"--conf segmenter {config.segmenter}: runs on the CPU, but --conf device is {config.device!r}; expected "
            f"device cpu, or on a GPU segmenter torch, or triton with engines of TensorRT"
        )
    return config


def state_dir(config: Config, studies: str) -> Path:
    """Where what outlives the server lies: as told, beside a folder of studies, or in the user's cache for a PACS."""
    if config.state_dir:
        return config.state_dir
    if studies.startswith(("http://", "https://")):
        name = hashlib.blake2b(studies.encode(), digest_size=8).hexdigest()
        return Path.home() / ".cache" / "imis_net" / name
    return Path(studies) / ".imis"


def _model(value: str) -> str:
    if value not in BUILDERS:
        raise ValueError(f"got {value!r}, expected one of {', '.join(BUILDERS)}")
    return value


def _segmenter(value: str) -> str:
    if value not in SEGMENTERS:
        raise ValueError(f"got {value!r}, expected one of {', '.join(SEGMENTERS)}")
    return value


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError(f"got {value!r}, expected HOST:PORT of Triton's gRPC service such as 127.0.0.1:8001")
    return value


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 < number <= 3600:
        raise ValueError(f"got {value!r}, expected seconds, more than 0 and at most 3600")
    return number


def _file(value: str) -> Path:
    path = Path(value).expanduser()
    if not path.is_file():
        raise ValueError(f"got {value!r}, expected an existing file")
    return path


def _count(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"got {value!r}, expected a whole number, zero or more")
    return int(value)


def _positive(value: str) -> int:
    number = _count(value)
    if not number:
        raise ValueError("got '0', expected at least 1")
    return number


def _rank(value: str) -> int:
    return check_rank(_count(value))


def _folder(value: str) -> Path:
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(f"got {value!r}, expected a folder")
    return path


def _auth(value: str) -> str:
    if value not in ("none", "tokens", "oidc"):
        raise ValueError(f"got {value!r}, expected none, tokens or oidc")
    return value


def _yes(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError(f"got {value!r}, expected yes or no")
    return value == "yes"


def _address(value: str) -> str:
    if not value.startswith(("https://", "http://")):
        raise ValueError(f"got {value!r}, expected an address beginning with https://")
    return value.rstrip("/")


def _device(value: str) -> str:
    device = torch.device(value)  # RuntimeError with the accepted kinds
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"got {value!r}, but torch finds no CUDA device here; expected 'cpu'")
    return value


def _fraction(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"got {value!r}, expected a number from 0 to 1")
    return number


def _share(value: str) -> float:
    number = _fraction(value)
    if not number:
        raise ValueError(f"got {value!r}, expected more than 0")
    return number


def _switch(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(f"got {value!r}, expected true or false")
    return value.lower() == "true"


def _names(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise ValueError(f"got {value!r}, expected names separated by commas")
    return names


def _cron(value: str) -> str:
    return check_cron(value)


def _minutes(value: str) -> float:
    number = float(value)
    if not 0 < number <= 24 * 60:
        raise ValueError(f"got {value!r}, expected minutes, more than 0 and at most a day's 1440")
    return number


_READERS: dict[str, Callable[[str], object]] = {
    "model": _model,
    "weights": _file,
    "image_size": _count,
    "decoder_dim": _count,
    "device": _device,
    "cache_bytes": _count,
    "threads": _count,
    "segmenter": _segmenter,
    "triton_url": _host_and_port,
    "triton_deadline_s": _seconds,
    "labels": _names,
    "min_iou": _fraction,
    "previous_mask": _switch,
    "workers": _positive,
    "max_queued": _positive,
    "state_dir": _folder,
    "disk_cache_bytes": _count,
    "prefetch": _count,
    "auth": _auth,
    "tokens_file": _file,
    "oidc_issuer": _address,
    "oidc_audience": str,
    "hosts": _names,
    "let_anybody_in": _yes,
    "retrain": _cron,
    "retrain_after": _count,
    "retrain_minutes": _minutes,
    "retrain_steps": _positive,
    "retrain_adapters": _rank,
    "retrain_threads": _count,
    "retrain_gpu_share": _share,
}
