"""The data set as tar files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from imis_net.data_engine.shards import write_shards


def test_shards_hold_whole_samples_and_equal_bytes(tmp_path: Path) -> None:
    """Breaks if a sample is cut between shards, a key ends at a dot of its stem, or the time stands in the bytes."""
    records = []
    for i in range(5):
        paths = {"image": f"{i}.png", "label": f"{i}.npz", "imask": f"{i}.npy"}
        for path in paths.values():
            (tmp_path / path).write_bytes(path.encode())
        records.append({"stem": f"case.{i}", "split": "test" if i == 4 else "training", **paths})
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    paths = write_shards(tmp_path, 3)
    assert [p.name for p in paths] == ["training-000000.tar", "training-000001.tar", "test-000000.tar"]
    with tarfile.open(paths[1]) as tar:
        assert tar.getnames() == ["case_3.png", "case_3.label.npz", "case_3.imask.npy", "case_3.json"]
        member = tar.extractfile("case_3.json")
        assert member is not None
        assert json.loads(member.read()) == records[3]
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in write_shards(tmp_path, 3)] == before
