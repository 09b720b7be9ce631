"""Labels under 10,000 injected faults: is everything that was acknowledged still there, and nothing else?

    python benchmarks/label_store.py [--num-faults 10000]

Nine in ten are a full disk, an I/O error or half a write at a random file or row of a store that goes on; the rest are
SIGKILLs of a process that saves without pause. The store is opened anew after each kill and at the end.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net"), str(ROOT / "apps" / "imis")]
sys.path[:0] = PATHS

from claims import Claim, report

from lib.label_store import LabelStore, LabelStoreError

SAVES_PER_KILLED_PROCESS = 10_000
WRITER = f"""
import sys
sys.path[:0] = {PATHS!r}
from pathlib import Path
from lib.label_store import LabelStore
store = LabelStore(Path(sys.argv[1]))
for n in range({SAVES_PER_KILLED_PROCESS}):
    version = store.append("image", "final", f"{{n}} {{sys.argv[2]}}".encode() * 2000, ".nii.gz", "one", {{}})
    print(version.id, version.sha256, flush=True)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-faults", type=int, default=10_000)
    num_faults = parser.parse_args().num_faults
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        lost, false, num_kept = _failures(Path(folder) / "failures", num_faults * 9 // 10, rng)
        lost_by_kill, num_acknowledged = _kills(Path(folder) / "kills", num_faults // 10, rng)
    beside = f"{num_kept + num_acknowledged} acknowledged saves"
    return report(
        "label_store",
        [
            Claim("acknowledged saves lost", lost + lost_by_kill, 0, at_least=False, beside=beside),
            Claim("refused saves that are seen", false, 0, at_least=False),
            Claim("faults injected", num_faults, 10_000),
        ],
    )


def _failures(folder: Path, num_faults: int, rng: random.Random) -> tuple[int, int, int]:
    """Lost, seen although refused, and kept saves of one store that goes on through all of them."""
    store, kept, num_done = LabelStore(folder), {}, 0
    n = 0
    while num_done < num_faults:
        n += 1
        content = b"%d " % n * 500
        fault = rng.choice(("no space", "I/O", "torn", "index", None))
        try:
            with _Fault(store, fault, rng):
                version = store.append("image", "final", content, ".nii.gz", "x" * 2000, {"n": n})
            kept[version.id] = content
        except (OSError, sqlite3.Error):
            num_done += 1
    store.close()
    again = LabelStore(folder)
    there = {v.id: _read(again, v.id) for v in again.versions("image")}
    lost = sum(there.get(number) != content for number, content in kept.items())
    return lost, len(there.keys() - kept.keys()), len(kept)


class _Fault:
    """The next save meets this fault."""

    def __init__(self, store: LabelStore, fault: str | None, rng: random.Random) -> None:
        self.store, self.fault, self.rng, self.write = store, fault, rng, Path.write_bytes

    def __enter__(self) -> None:
        if self.fault == "index":
            pages = self.store._database.execute("PRAGMA page_count").fetchone()[0]
            self.store._database.execute(f"PRAGMA max_page_count = {pages}")
        elif self.fault:
            Path.write_bytes = self._failing  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        Path.write_bytes = self.write  # type: ignore[method-assign]
        self.store._database.execute("PRAGMA max_page_count = 1000000000")

    def _failing(self, content: bytes) -> int:
        """Stands in for ``Path.write_bytes`` of the draft, and leaves what such a fault leaves."""
        draft = self.store.files / f".torn{self.rng.random()}"
        if self.fault == "torn":
            self.write(draft, content[: self.rng.randrange(len(content))])
        raise OSError(errno.ENOSPC if self.fault == "no space" else errno.EIO, "injected")


def _kills(folder: Path, num_kills: int, rng: random.Random) -> tuple[int, int]:
    """Acknowledged saves that were lost, and all of them."""
    lost = num_acknowledged = 0
    for kill in range(num_kills):
        command = [sys.executable, "-c", WRITER, str(folder), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            time.sleep(rng.uniform(0, 0.03))
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        store = LabelStore(folder)
        saved = [line.split() for line in lines if line.endswith("\n")]
        lost += sum(_sha256(store, int(number)) != sha256 for number, sha256 in saved)
        num_acknowledged += len(saved)
        store.close()
    return lost, num_acknowledged


def _sha256(store: LabelStore, number: int) -> str:
    try:
        version = store.get("image", number)
        store.read(version)
        return version.sha256
    except LabelStoreError:
        return ""


def _read(store: LabelStore, number: int) -> bytes:
    try:
        return store.read(store.get("image", number))
    except LabelStoreError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
