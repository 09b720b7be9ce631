"""Labels that are never lost: real files and a real SQLite, with kills and full disks."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib import label_store as module
from lib.label_store import LabelStore, LabelStoreError

NUM_KILLS, NUM_FAILURES = 12, 100

_WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from lib.label_store import LabelStore
store = LabelStore(Path(sys.argv[1]))
for n in range(10_000):
    version = store.append("image", "final", f"{n} of {sys.argv[1]}".encode() * 2000, ".nii.gz", "one", {"n": n})
    print(version.id, version.sha256, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path)


def test_every_save_is_kept_and_told_apart(store: LabelStore) -> None:
    """Breaks if a save erases the one before, versions share a number, or facts are lost."""
    first = store.append("a", "final", b"one", ".nii.gz", "ann", {"weights": "w"})
    second = store.append("a", "final", b"two", ".nii.gz", "bob", {}, parent=first.id)
    store.append("a", "original", b"two", ".nii.gz", "bob", {})
    assert [v.id for v in store.versions("a", "final")] == [first.id, second.id]
    assert len(store.versions("a")) == 3
    assert store.newest("a", "final") == second
    assert store.newest("a", "final", before=second.id) == first
    assert (store.read(first), store.read(second)) == (b"one", b"two")
    assert second.parent == first.id
    assert LabelStore(store.files.parent).get("a", first.id) == first


def test_two_servers_on_one_folder_lose_nothing(store: LabelStore, tmp_path: Path) -> None:
    """Breaks if a second connection overwrites or locks out the first."""
    other = LabelStore(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        saved = list(pool.map(lambda n: (store, other)[n % 2].append("a", "final", b"%d" % n, "", "", {}), range(40)))
    assert sorted(v.id for v in store.versions("a")) == sorted(v.id for v in saved)
    assert all(store.read(v) for v in saved)


def test_what_was_changed_on_the_disk_is_not_believed(store: LabelStore) -> None:
    """Breaks if a torn or missing file is served as somebody's label."""
    version = store.append("a", "final", b"content", "", "", {})
    (store.files / version.sha256).write_bytes(b"cont")
    with pytest.raises(LabelStoreError, match="is not what was saved"):
        store.read(version)
    (store.files / version.sha256).unlink()
    with pytest.raises(LabelStoreError, match="cannot be read"):
        store.read(version)
    with pytest.raises(LabelStoreError, match="no such version: got 99 of 'a'"):
        store.get("a", 99)


def test_a_failing_disk_keeps_all_or_nothing(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a save whose file or row did not get to the disk is seen, or spoils those before and after."""
    rng = random.Random(0)
    write = module.write_durably

    def failing(path: Path, content: bytes) -> None:
        if rng.random() < 0.3:
            raise OSError(rng.choice((errno.ENOSPC, errno.EIO)), "injected")
        write(path, content)

    monkeypatch.setattr(module, "write_durably", failing)
    kept = {}
    for n in range(NUM_FAILURES):
        if rng.random() < 0.2:
            pages = store._database.execute("PRAGMA page_count").fetchone()[0]
            store._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own full disk
        try:
            version = store.append("a", "final", b"%d" % n, "", "x" * 3000, {"n": n})
            kept[version.id] = b"%d" % n
        except (OSError, sqlite3.Error):
            store._database.execute("PRAGMA max_page_count = 1000000")
    assert 10 < len(kept) < NUM_FAILURES
    again = LabelStore(store.files.parent)
    assert {v.id: again.read(v) for v in again.versions("a")} == kept


def test_killed_at_any_moment_it_has_every_save_it_acknowledged(tmp_path: Path) -> None:
    """Breaks if a row reaches the disk before its file, or an acknowledged save is still in the process's memory."""
    rng = random.Random(1)
    command = [sys.executable, "-c", _WRITER, str(tmp_path), *(p for p in sys.path if p.endswith(("imis", "imis_net")))]
    for _ in range(NUM_KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            time.sleep(rng.uniform(0, 0.05))
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        store = LabelStore(tmp_path)
        there = {v.id: v for v in store.versions("image")}
        acknowledged = [line.split() for line in lines if line.endswith("\n")]
        assert acknowledged
        for number, sha256 in acknowledged:
            assert there[int(number)].sha256 == sha256
        assert all(store.read(v) for v in there.values())
        store.close()


def test_a_save_does_not_rest_on_a_damaged_file(store: LabelStore) -> None:
    """Breaks if the same content is acknowledged because some file of its name is there, whatever is in it."""
    first = store.append("a", "final", b"content", ".nii.gz", "ann", {})
    (store.files / first.sha256).write_bytes(b"con")
    second = store.append("a", "final", b"content", ".nii.gz", "bob", {}, parent=first.id)
    assert store.read(second) == store.read(first) == b"content"
