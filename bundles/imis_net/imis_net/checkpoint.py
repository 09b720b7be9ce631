"""Weights in files: safe reading, published layouts to ours, strict loading, atomic saving.

Layouts: IMIS-Bench (``IMISNet-B.pth`` and what its train.py writes), SAM and MedSAM (Meta's names), SAM-Med2D (the same
with adapters). Nothing is unpickled but tensors and plain containers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from imis_net.errors import CheckpointError
from imis_net.files import replacing
from imis_net.networks.image_encoder import PRETRAINED_SIDE

StateDict = dict[str, Tensor]
TRUNK = "image_encoder.trunk."
"""Prefix of the image encoder's trunk in our layout."""
_HEADER_SIZE_BYTES = 8
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
WRAPPERS = ("model_state_dict", "state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """What of a file went into a network.

    Attributes:
        loaded, missing: the network's keys that got a value, and those that did not.
        unexpected: the file's keys that have no place in the network.
        wrong_shape: "key: expected ..., got ..." for those that do not fit.
        ignored: the file's keys that the layout is known to carry and the network not to need.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def problems(self) -> str:
        """The lists that stand in the way of a strict load, one key a line; empty if none."""
        parts = [("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.wrong_shape)]
        return "\n".join(f"{title} ({len(keys)}):\n  " + "\n  ".join(keys) for title, keys in parts if keys)


def read_state_dict(path: Path, leave_out: str | None = None) -> StateDict:
    """Tensors by name from a safetensors or PyTorch file, unwrapped, without a ``module.`` prefix.

    What a safetensors file has under the prefix ``leave_out`` is not read.

    Raises:
        CheckpointError: unreadable, or holding anything but tensors and plain containers.
    """
    content = _read_safetensors(path, leave_out) if path.suffix == ".safetensors" else _read_pytorch(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name}: expected tensors by name, found none")
    return tensors


def _read_safetensors(path: Path, leave_out: str | None) -> dict:
    with _opened(path) as file:
        wanted = [key for key in file.keys() if leave_out is None or not key.startswith(leave_out)]  # noqa: SIM118
        return {key: file.get_tensor(key) for key in wanted}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: not a readable safetensors file ({error})") from error


def trunk_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """A safetensors file's trunk as ``trunk.state_dict()`` has it, one tensor in memory at a time, in order of keys.

    Raises:
        CheckpointError: not a readable safetensors file.
    """
    with _opened(path) as file:
        for key in sorted(k for k in file.keys() if k.startswith(TRUNK)):  # noqa: SIM118 (not a dict)
            yield key.removeprefix(TRUNK), file.get_tensor(key).float()


def _read_pytorch(path: Path) -> dict:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # train.py keeps its arguments beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a bad file, and UnpicklingError for a refused one
        raise CheckpointError(
            f"{path.name}: refused or unreadable ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name}: expected a dictionary of tensors, got {type(content).__name__}")
    return dict(content)


def load_weights(network: nn.Module, path: Path, leave_out: str | None = None) -> None:
    """Load a file of our own layout, strictly, but for what it has under the prefix ``leave_out``.

    Raises:
        CheckpointError: unreadable, or with the list of missing, unexpected and wrongly shaped keys.
    """
    report = fill(network, read_state_dict(path, leave_out))
    if report.problems():
        raise CheckpointError(f"{path.name} does not fit this network\n{report.problems()}")


def fill(network: nn.Module, state: StateDict) -> LoadReport:
    """Copy what fits from a state of our layout and report the rest; the caller decides what is an error."""
    own = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    report = LoadReport()
    for key, value in own.items():
        if key not in state:
            report.missing.append(key)
        elif state[key].shape != value.shape:
            report.wrong_shape.append(f"{key}: expected {list(value.shape)}, got {list(state[key].shape)}")
        else:
            report.loaded.append(key)
            value.copy_(state[key])
    report.unexpected.extend(k for k in state if k not in own and not k.endswith("num_batches_tracked"))
    return report


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str], half: bool = False) -> None:
    """Write a network's weights atomically as safetensors, float32 or float16."""
    dtype = torch.float16 if half else torch.float32
    tensors = {
        k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous()
        for k, v in network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    with replacing(path) as draft:
        save_file(tensors, draft, dict(metadata))


def rewrite_safetensors(source: Path, path: Path, values: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A copy of ``source`` with other values of some of its tensors, each in the file's precision; atomically.

    What stays is copied from disk to disk, so that memory holds ``values`` alone.

    Raises:
        CheckpointError: ``source`` is gone or no safetensors file.
        OSError: the disk is full or the folder missing; nothing is left behind.
    """
    with _opened(source) as file:
        dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys() if key in values}  # noqa: SIM118
    with source.open("rb") as old:
        header = json.loads(old.read(int.from_bytes(old.read(_HEADER_SIZE_BYTES), "little")))
        header["__metadata__"] = dict(metadata)
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % _HEADER_SIZE_BYTES)
        with replacing(path) as draft, draft.open("wb") as new:
            new.write(len(head).to_bytes(_HEADER_SIZE_BYTES, "little") + head)
            start = new.tell()
            shutil.copyfileobj(old, new)
            for key, dtype in dtypes.items():
                new.seek(start + header[key]["data_offsets"][0])
                value = values[key].to(_DTYPES[dtype])
                new.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def convert(state: StateDict, layout: str) -> tuple[StateDict, list[str]]:
    """A published layout's tensors under our names.

    Args:
        state: what ``read_state_dict`` returned.
        layout: a key of ``LAYOUTS``.

    Returns:
        our names to tensors, and the keys that the layout carries but that are known to be of no use.
    """
    rename, ignore = LAYOUTS[layout]
    ignored = [k for k in state if ignore.search(k)]
    renamed = {rename(k): v for k, v in state.items() if not ignore.search(k)}
    return _fuse_attention(renamed), ignored


def _from_imis_bench(key: str) -> str:
    """timm's trunk to SAM's names, Hugging Face's CLIP to open_clip's; the rest only changes its prefix."""
    if key.startswith("image_encoder.sam_encoder."):
        key = key.replace("image_encoder.sam_encoder.", "image_encoder.trunk.")
        return key.replace(".mlp.fc1.", ".mlp.lin1.").replace(".mlp.fc2.", ".mlp.lin2.")
    if key.startswith("text_out_dim."):
        return key.replace("text_out_dim.", "text_projection.")
    if key.startswith("text_model."):
        return _from_hugging_face_clip(key.replace("text_model.", "", 1).removeprefix("text_model."))
    return key


def _from_hugging_face_clip(key: str) -> str:
    tower = "text_encoder.tower."
    for theirs, ours in (
        ("embeddings.token_embedding.", "token_embedding."),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("final_layer_norm.", "ln_final."),
        ("encoder.layers.", "transformer.resblocks."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
        (".self_attn.", ".attn."),
    ):
        key = key.replace(theirs, ours)
    return tower + key


def _fuse_attention(state: StateDict) -> StateDict:
    """open_clip keeps q, k and v of its text tower in one matrix."""
    fused = dict(state)
    for key in state:
        match = re.fullmatch(r"(text_encoder\.tower\..*\.attn\.)q_proj\.(weight|bias)", key)
        if match is None:
            continue
        stem, kind = match.groups()
        parts = [f"{stem}{p}_proj.{kind}" for p in "qkv"]
        if all(p in state for p in parts):
            fused[f"{stem}in_proj_{kind}"] = torch.cat([fused.pop(p) for p in parts])
    return fused


def _from_sam(key: str) -> str:
    """Meta's image encoder and neck; prompt encoder and decoder already have our names."""
    if key.startswith("image_encoder.neck."):
        return key
    return key.replace("image_encoder.", "image_encoder.trunk.", 1)


def resize_position_tables(state: StateDict) -> list[str]:
    """Bring a trunk's position tables from another frame's grid to the 64 x 64 one that ours keeps, in place.

    SAM-Med2D is published at 256 px with tables for 16 x 16 tokens. What was learned there returns approximately.

    Returns:
        the names of the tables that were resized.
    """
    position = state.get(f"{TRUNK}pos_embed")
    if position is None or position.ndim != 4 or position.shape[1] == PRETRAINED_SIDE:
        return []
    side = (PRETRAINED_SIDE, PRETRAINED_SIDE)
    table = F.interpolate(rearrange(position.float(), "1 h w c -> 1 c h w"), size=side, mode="bicubic")
    state[f"{TRUNK}pos_embed"] = rearrange(table, "1 c h w -> 1 h w c")
    resized = [f"{TRUNK}pos_embed"]
    for key in [k for k in state if k.startswith(TRUNK) and k.endswith(("rel_pos_h", "rel_pos_w"))]:
        if len(state[key]) == 2 * position.shape[1] - 1:  # a global block's; window blocks do not depend on the frame
            line = rearrange(state[key].float(), "n c -> 1 c n")
            line = F.interpolate(line, size=2 * PRETRAINED_SIDE - 1, mode="linear")
            state[key] = rearrange(line, "1 c n -> n c")
            resized.append(key)
    return resized


Rename = Callable[[str], str]
LAYOUTS: dict[str, tuple[Rename, re.Pattern[str]]] = {
    # timm builds SAM's own neck although IMIS-Net has another; old transformers kept position ids.
    "imis-bench": (_from_imis_bench, re.compile(r"^image_encoder\.sam_encoder\.neck\.|position_ids$")),
    "sam": (_from_sam, re.compile(r"^pixel_(mean|std)$")),
    "medsam": (_from_sam, re.compile(r"^pixel_(mean|std)$")),
    "sam-med2d": (_from_sam, re.compile(r"^pixel_(mean|std)$|\.Adapter\.")),
}
