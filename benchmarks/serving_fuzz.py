"""Hostile requests and files against a real server: no crash, no hang, no 5xx, bounded memory.

Several clients at a time draw from one seeded stream, so that requests also meet each other.

python benchmarks/serving_fuzz.py --number 100000
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("bundles/imis_net", "apps/imis", "tests/e2e", "benchmarks")]

from claims import Claim, report
from hostile_requests import Hostile, hostile_requests
from running_server import APP, RunningServer, running_server

from lib.access import ACCESS

CT = json.loads((APP / "sample_studies" / "labels.json").read_text())["example"]["image"]
NUM_CLIENTS = 4
CACHE_BYTES = str(512 << 20)
"""Told to the server, so that what grows beyond it is no cache that fills as it may."""
REPORT_EVERY = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(APP / "sample_studies", folder / "studies")
        tokens = folder / "tokens"
        make = [sys.executable, str(ROOT / "scripts" / "make_token.py"), "--file", str(tokens)]
        command = [*make, "--user", "fuzz", "--role", "admin"]
        token = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        conf = ["--conf", "auth", "tokens", "--conf", "tokens_file", str(tokens), "--conf", "cache_bytes", CACHE_BYTES]
        with running_server(folder, folder / "studies", *conf) as server:
            claims = _fuzzed(server, token, args.number, args.seed)
    sys.exit(report("serving_fuzz", claims))


def _fuzzed(server: RunningServer, token: str, number: int, seed: int) -> list[Claim]:
    _session(token).post(f"{server.url}/infer/imis", params={"image": CT}, data={"params": '{"text": "liver"}'})
    start_mb, seen = _memory_mb(server, "VmRSS"), Seen(number)
    stream = itertools.islice(hostile_requests(seed, CT, list(ACCESS)), number)
    drawing = threading.Lock()

    def client(_: int) -> None:
        session = _session(token)
        while True:
            with drawing:
                asked = next(stream, None)
            if asked is None:
                return
            seen.add(asked, *_asked(session, server, asked))

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(client, range(NUM_CLIENTS)))
    grown_mb = _memory_mb(server, "VmHWM") - start_mb
    beside = f"{sum(seen.statuses.values())} requests of {NUM_CLIENTS} clients at a time"
    return [
        Claim("answers 5xx to hostile requests", seen.statuses[5], 0, at_least=False, beside=beside),
        Claim("slowest answer to a hostile request, s", seen.slowest_s, 5, at_least=False, beside=beside),
        Claim("server alive after hostile requests", float(server.process.poll() is None), 1, beside=beside),
        Claim("memory grown at the peak of hostile requests, MB", grown_mb, 2048, at_least=False, beside=beside),
    ]


@dataclass(eq=False)
class Seen:
    """What came back, by hundreds of the status; tells what should not have, and how far it is."""

    number: int
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    start_s: float = field(default_factory=time.perf_counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, asked: Hostile, status: int, seconds: float) -> None:
        with self.lock:
            self.statuses[status // 100] += 1
            self.slowest_s = max(self.slowest_s, seconds)
            num_done = sum(self.statuses.values())
        if status >= 500 or seconds > 5:
            print(f"{status} {seconds:.1f} s {asked.method} {asked.path[:80]} {str(asked.arguments)[:300]}", flush=True)
        if num_done % REPORT_EVERY == 0:
            rate = num_done / (time.perf_counter() - self.start_s)
            print(f"  {num_done} of {self.number}, {rate:.0f} a second, slowest {self.slowest_s:.2f} s", flush=True)


def _session(token: str) -> requests.Session:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    return session


def _asked(session: requests.Session, server: RunningServer, asked: Hostile) -> tuple[int, float]:
    start = time.perf_counter()
    try:
        status = session.request(asked.method, server.url + asked.path, timeout=60, **asked.arguments).status_code
    except requests.RequestException:
        return 599, math.inf
    return status, time.perf_counter() - start


def _memory_mb(server: RunningServer, what: str) -> float:
    """``VmRSS``, what it holds now, or ``VmHWM``, the most that it ever held."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
