"""Hostile requests and files against a real server: no crash, no hang, no 5xx, bounded memory.

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
import time
from collections import Counter
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("bundles/imis_net", "apps/imis", "tests/e2e", "benchmarks")]

from claims import Claim, report
from hostile_requests import Hostile, hostile_requests
from running_server import APP, RunningServer, running_server

from lib.access import ACCESS

CT = json.loads((APP / "sample_studies" / "labels.json").read_text())["example"]["image"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
        conf = ["--conf", "auth", "tokens", "--conf", "tokens_file", str(tokens)]
        with running_server(folder, folder / "studies", *conf) as server:
            claims = _fuzzed(server, token, args.number, args.seed)
    sys.exit(report("serving_fuzz", claims))


def _fuzzed(server: RunningServer, token: str, number: int, seed: int) -> list[Claim]:
    session, statuses, slowest_s = requests.Session(), Counter[int](), 0.0
    session.headers["Authorization"] = f"Bearer {token}"
    session.post(f"{server.url}/infer/imis", params={"image": CT}, data={"params": '{"text": "liver"}'})
    start_mb = _memory_mb(server)
    for asked in itertools.islice(hostile_requests(seed, CT, list(ACCESS)), number):
        status, seconds = _asked(session, server, asked)
        statuses[status // 100] += 1
        slowest_s = max(slowest_s, seconds)
        if status >= 500 or seconds > 5:
            print(f"{status} {seconds:.1f} s {asked.method} {asked.path[:80]} {str(asked.arguments)[:300]}", flush=True)
    grown_mb = _memory_mb(server) - start_mb
    seen = f"{sum(statuses.values())} requests"
    return [
        Claim("answers 5xx to hostile requests", statuses[5], 0, at_least=False, beside=seen),
        Claim("slowest answer to a hostile request, s", slowest_s, 5, at_least=False, beside=seen),
        Claim("server alive after hostile requests", float(server.process.poll() is None), 1, beside=seen),
        Claim("memory grown over hostile requests, MB", grown_mb, 2048, at_least=False, beside=seen),
    ]


def _asked(session: requests.Session, server: RunningServer, asked: Hostile) -> tuple[int, float]:
    start = time.perf_counter()
    try:
        status = session.request(asked.method, server.url + asked.path, timeout=60, **asked.arguments).status_code
    except requests.RequestException:
        return 599, math.inf
    return status, time.perf_counter() - start


def _memory_mb(server: RunningServer) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    main()
