"""The data set once more as WebDataset shards: tar files that training streams without a million small reads.

A sample is four members of one key: ``<stem>.png``, ``<stem>.label.npz``, ``<stem>.imask.npy``,
``<stem>.json`` (its line
of the index). Dots in a stem become underscores, since WebDataset ends a key at the first one. Times, owners and order
are fixed, so that equal data sets give equal shards.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from imis_net.data_engine.assembly import read_index
from imis_net.data_engine.layout import Record
from imis_net.files import write_atomically

SPLITS = ("training", "test")


def write_shards(out: Path, images_per_shard: int) -> list[Path]:
    """``shards/<split>-000000.tar`` and so on; returns the paths.

    Raises:
        OSError: cannot be written.
    """
    (out / "shards").mkdir(exist_ok=True)
    paths = []
    for split in SPLITS:
        records = (r for r in read_index(out) if r["split"] == split)
        for number, members in enumerate(iter(lambda: list(islice(records, images_per_shard)), [])):  # noqa: B023
            path = out / "shards" / f"{split}-{number:06d}.tar"
            write_atomically(path, _tar(out, members))
            paths.append(path)
    return paths


def _tar(out: Path, records: list[Record]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for record in records:
            for name, content in _members(out, record):
                facts = tarfile.TarInfo(name)
                facts.size = len(content)
                tar.addfile(facts, io.BytesIO(content))
    return buffer.getvalue()


def _members(out: Path, record: Record) -> Iterator[tuple[str, bytes]]:
    key = record["stem"].replace(".", "_")
    for ending, kind in (("png", "image"), ("label.npz", "label"), ("imask.npy", "imask")):
        yield f"{key}.{ending}", (out / record[kind]).read_bytes()
    yield f"{key}.json", json.dumps(record, ensure_ascii=False).encode()
