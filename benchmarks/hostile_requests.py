"""Requests that no viewer sends: a seeded stream of them over every route, used by the suite and by the long run."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")
STARTERS = ("/train/", "/batch/infer", "/scoring/", "/reload", "/logs/gpu")
"""Valid calls of these start work, or another program, which is not what is tried here."""
NAMES = ("ct", "..", "../../etc/passwd", "%2e%2e%2f", "a/b", "", " ", "\u202e", "a" * 3000, "$x", "\0", "final", "imis")
SCALARS = (
    None,
    True,
    -1,
    0,
    1,
    7,
    1e308,
    -1e-308,
    2**63,
    10**30,
    "",
    "$1+1",
    "@x",
    "%y",
    "liver",
    "\ud83d\ude00",
    "x" * 500,
)
KEYS = (
    *("foreground", "background", "points", "point_labels", "box", "roi", "text", "slice", "axis", "window", "prompt"),
    *(
        "label",
        "label_prompt",
        "client_id",
        "result_extension",
        "session_id",
        "image",
        "save_label",
        "label_tag",
        "zzz",
    ),
)


@dataclass(frozen=True)
class Hostile:
    """One request, as ``requests.request`` takes it."""

    method: str
    path: str
    arguments: dict[str, Any] = field(default_factory=dict)


def hostile_requests(seed: int, image: str, templates: list[str]) -> Iterator[Hostile]:
    """Endless; ``image`` is an id that exists, ``templates`` are the server's routes."""
    rng = random.Random(seed)
    templates = sorted(t for t in templates if not t.startswith(STARTERS))
    makers = (_infer, _upload, _target, _anything, _anything, _json)
    while True:
        yield rng.choice(makers)(rng, image, templates)


def _infer(rng: random.Random, image: str, templates: list[str]) -> Hostile:
    params = _text(rng, _params(rng))
    query = {"image": rng.choice([image] * 6 + list(NAMES)), "output": rng.choice(["json", "image", "all", "x", ""])}
    return Hostile(
        "POST",
        f"/infer/{rng.choice(['imis', 'imis', 'imis_text', 'zzz'])}",
        {"params": query, "data": {"params": params}},
    )


def _upload(rng: random.Random, image: str, templates: list[str]) -> Hostile:
    name, content = hostile_file(rng)
    path = rng.choice(["/infer/imis", "/datastore/image", "/session/", "/datastore/label"])
    key = "files" if path == "/session/" else "label" if path == "/datastore/label" else "file"
    query = {"image": rng.choice(["fuzz", *NAMES]), "output": "json"}
    data = {"params": '{"foreground": [[1, 1, 0]]}'}
    method = "POST" if path == "/infer/imis" else "PUT"
    return Hostile(method, path, {"params": query, "data": data, "files": {key: (name, content)}})


def _target(rng: random.Random, image: str, templates: list[str]) -> Hostile:
    name = rng.choice(["liver", "liver", *NAMES[:6]]).replace("/", "%2F")
    path = f"/imis/targets/{image}/{name}"
    kind = rng.choice(["prompts", "prompts", "undo", "redo", "", "delete"])
    if kind == "prompts":
        return Hostile("POST", f"{path}/prompts", {"data": _text(rng, _params(rng)), "headers": _JSON})
    return Hostile(
        {"": "GET", "delete": "DELETE"}.get(kind, "POST"), f"{path}/{kind}" if kind in ("undo", "redo") else path
    )


def _anything(rng: random.Random, image: str, templates: list[str]) -> Hostile:
    parts = [
        str(rng.choice(NAMES)).replace("\0", "%00").replace("?", "%3F") if part.startswith("{") else part
        for part in rng.choice(templates).split("/")
    ]
    query = {
        rng.choice(["image", "tag", "label", "id", "params", "output", "lines"]): rng.choice(NAMES) for _ in range(2)
    }
    return Hostile(rng.choice(METHODS), "/".join(parts), {"params": query})


def _json(rng: random.Random, image: str, templates: list[str]) -> Hostile:
    path = rng.choice([t for t in templates if "{" not in t] + ["/activelearning/random", "/infer/wsi/imis"])
    return Hostile(rng.choice(["POST", "PUT"]), path, {"data": _text(rng, _params(rng)), "headers": _JSON})


_JSON = {"Content-Type": "application/json"}


def _params(rng: random.Random) -> dict[str, Any]:
    good = {"foreground": [[rng.randrange(512), rng.randrange(512), 0]]} if rng.random() < 0.5 else {}
    return good | {rng.choice(KEYS): _value(rng) for _ in range(rng.randrange(4))}


def _value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.5 or depth > 3:
        return rng.choice(SCALARS)
    if kind < 0.9:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(7))]
    return {str(rng.choice(SCALARS)): _value(rng, depth + 1) for _ in range(rng.randrange(3))}


def _text(rng: random.Random, value: object) -> str:
    text = json.dumps(value)
    harm = rng.random()
    if harm < 0.06:
        return text[: rng.randrange(len(text) + 1)]
    if harm < 0.09:
        return "[" * 50_000
    if harm < 0.12:
        return '{"foreground": NaN}'
    return text


def hostile_file(rng: random.Random) -> tuple[str, bytes]:
    """A name and bytes: bombs, forged sizes, truncations and noise."""
    made = rng.choice([_nifti_forged, _nifti_bomb, _png_bomb, _nrrd_forged, _dicom_truncated, _noise])(rng)
    name = rng.choice(["a.nii.gz", "a.nii", "a.png", "a.nrrd", "a.dcm", "../../a.png", "a", "a" * 300 + ".nii"])
    return name, made


def _nifti_header(shape: tuple[int, ...], dtype: int = 4) -> bytes:
    head = bytearray(352)
    struct.pack_into("<i8h", head, 0, 348, 0, 0, 0, 0, 0, 0, 0, 0)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *([1] * (7 - len(shape))))
    struct.pack_into("<2h", head, 70, dtype, 16)
    struct.pack_into("<8f", head, 76, *([1.0] * 8))
    struct.pack_into("<f", head, 108, 352.0)
    head[344:348] = b"n+1\0"
    return bytes(head)


def _nifti_forged(rng: random.Random) -> bytes:
    sides = [rng.choice([-1, 0, 1, 3, 32767]) for _ in range(3)]
    return _nifti_header(tuple(sides), rng.choice([2, 4, 16, 0, 99])) + b"\0" * 100


def _nifti_bomb(rng: random.Random) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    pieces = [packer.compress(_nifti_header((512, 512, 3)))]
    pieces += [packer.compress(b"\0" * (1 << 20)) for _ in range(rng.randrange(1, 40))]
    return b"".join(pieces) + packer.flush()


def _png_bomb(rng: random.Random) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = rng.choice([0, 1, 60_000, 2**31 - 1])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")


def _nrrd_forged(rng: random.Random) -> bytes:
    sizes = " ".join(str(rng.choice([-5, 0, 4, 10**9])) for _ in range(3))
    text = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: gzip\ndata file: /etc/passwd\n\n"
    return text.encode() + gzip.compress(b"\0" * 64)


def _dicom_truncated(rng: random.Random) -> bytes:
    return b"\0" * 128 + b"DICM" + rng.randbytes(rng.randrange(400))


def _noise(rng: random.Random) -> bytes:
    return io.BytesIO(rng.randbytes(rng.randrange(2000))).getvalue()
