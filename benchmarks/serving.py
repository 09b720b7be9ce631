"""Serving, end to end over HTTP: this app beside MONAI Label's policy of encoding at every click, in one run.

python benchmarks/serving.py             # half an hour, of which all but two minutes are 32,000 clicks of 16 users
python benchmarks/serving.py --clicks 0  # without those; their rows stay
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("bundles/imis_net", "apps/imis", "tests/e2e", "benchmarks")]

import SimpleITK as sitk
from claims import Claim, report
from running_server import RunningServer, running_server

from imis_net.prompts import Prompt
from imis_net.segmenter import load_segmenter

SHAPE = (100, 512, 512)
NUM_USERS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=1000, help="of each of the 16 users (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_volume(folder / "studies" / "volume.nii.gz")
        _write_volume(folder / "studies" / "slice.nii.gz", num_slices=1)
        stock_s, stock_runs = _stock(folder, args.repeats)
        timed = ROOT / "benchmarks" / "timed_app"
        with running_server(folder, folder / "studies", "--conf", "prefetch", "0", app=timed) as server:
            claims = [
                *_encode_once(server, stock_runs, args.repeats),
                *_second_click(server, stock_s, args.repeats),
                _healthz(server),
                _overlap(server),
                *(_many_users(server, args.clicks) if args.clicks else []),
            ]
    sys.exit(report("serving", claims, keep_others=True))


def _write_volume(path: Path, num_slices: int = SHAPE[0]) -> None:
    """Noise over a blob per slice: as large and as hard to pack as a CT."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    voxels = rng.normal(0, 30, (num_slices, *SHAPE[1:])).astype(np.int16)
    voxels[:, 150:300, 200:380] += 120
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.8, 0.8, 2.5))
    sitk.WriteImage(image, path)


def _stock(folder: Path, repeats: int) -> tuple[float, float]:
    """Seconds of a second click, and encoder runs per click on one slice."""
    app = ROOT / "benchmarks" / "stock_policy"
    with running_server(folder, folder / "studies", app=app, ready="/info/") as server:
        seconds, runs = [], []
        for n in range(max(3, repeats // 3) + 1):
            start = time.perf_counter()
            answer = _infer(
                server, "stock", "volume", {"foreground": [[250 + n, 200, 50]], "result_extension": ".nrrd"}
            )
            seconds.append(time.perf_counter() - start)
            runs.append(int(re.search(rb'"encoder_runs": (\d+)', answer.content)[1]))  # type: ignore[index]
        return statistics.median(seconds[1:]), (runs[-1] - runs[0]) / (len(runs) - 1)


def _infer(server: RunningServer, model: str, image: str, params: dict, output: str = "all") -> requests.Response:
    query = {"image": image, "output": output}
    answer = requests.post(
        f"{server.url}/infer/{model}", params=query, data={"params": json.dumps(params)}, timeout=300
    )
    answer.raise_for_status()
    return answer


def _step(server: RunningServer, image: str, target: str, user: str, click: list[int], kind: str = "prompts") -> dict:
    url = f"{server.url}/imis/targets/{image}/{target}/{kind}"
    answer = requests.post(url, params={"client_id": user}, json={"foreground": [click]}, timeout=300)
    answer.raise_for_status()
    return answer.json()


def _metric(server: RunningServer, name: str) -> float:
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def _encode_once(server: RunningServer, stock_runs: float, repeats: int) -> list[Claim]:
    """Several users, both routes, two of them at the very same moment, on one slice."""
    before = _metric(server, "imis_cache_encoder_runs_total")
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda n: _step(server, "volume", "a", f"user {n}", [250, 200, 50]), range(2)))
    for n in range(repeats):
        _step(server, "volume", f"target {n % 3}", f"user {n % 4}", [230 + n, 220, 50])
        _infer(server, "imis", "volume", {"foreground": [[230 + n, 210, 50]]}, "json")
    runs = _metric(server, "imis_cache_encoder_runs_total") - before
    beside = f"{2 * repeats + 2} clicks of 4 users; stock policy {stock_runs:.3g} per click"
    return [
        Claim("encoder runs per slice and weights, at most", runs, 1, at_least=False, beside=beside),
        Claim("encoder runs per slice and weights, at least", runs, 1, beside=beside),
    ]


def _second_click(server: RunningServer, stock_s: float, repeats: int) -> list[Claim]:
    decoder_s = _decoder_s(repeats)
    click_s = _median_s(lambda n: _step(server, "volume", "second", f"u{n}", [240 + n, 200, 50]), repeats)
    viewer_s = _median_s(lambda n: _infer(server, "imis", "volume", {"foreground": [[240 + n, 200, 50]]}), repeats)
    beside = f"{1000 * click_s:.0f} ms, whole mask to a viewer {1000 * viewer_s:.0f} ms"
    own = f"decoder alone {1000 * decoder_s:.0f} ms"
    return [
        Claim("second click / stock policy's", click_s / stock_s, 1 / 20, False, f"{beside}; stock {stock_s:.2f} s"),
        Claim("second click, ms", 1000 * click_s, 1000 * 1.5 * decoder_s + 20, False, f"{own}; goal 1.5x + 20 ms"),
        Claim("second click with the whole mask / stock policy's", viewer_s / stock_s, 1 / 20, False, beside),
    ]


def _decoder_s(repeats: int) -> float:
    segmenter = load_segmenter()
    embedding = segmenter.encode_image(np.zeros((512, 512, 3), np.uint8))
    prompts = [Prompt(point_coords=[(240 + n, 200)], point_labels=[1]) for n in range(repeats + 3)]
    return _median_s(lambda n: segmenter.predict(embedding, prompts[n]), repeats)


def _median_s(call: Callable[[int], object], repeats: int, warm: int = 3) -> float:
    seconds = []
    for n in range(warm + repeats):
        start = time.perf_counter()
        call(n)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm:])


def _healthz(server: RunningServer) -> Claim:
    inference = threading.Thread(target=_infer, args=(server, "busy", "slice", {}, "json"))
    session, times_ms = requests.Session(), []
    session.get(f"{server.url}/healthz", timeout=60)
    inference.start()
    while inference.is_alive():
        start = time.perf_counter()
        session.get(f"{server.url}/healthz", timeout=60)
        times_ms.append(1000 * (time.perf_counter() - start))
        time.sleep(0.005)
    p99 = float(np.percentile(times_ms, 99))
    return Claim("p99 of /healthz during a 3 s inference, ms", p99, 20, False, f"n = {len(times_ms)}")


def _overlap(server: RunningServer) -> Claim:
    start = time.perf_counter()
    with ThreadPoolExecutor(4) as users:
        list(users.map(lambda n: _infer(server, "wait", "slice", {"client_id": f"user {n}"}, "json"), range(4)))
    return Claim("4 users x 1 s of waiting work, s", time.perf_counter() - start, 1.3, False, "one after another 4 s")


def _many_users(server: RunningServer, num_clicks: int) -> list[Claim]:
    """Each user's walk alone, then all at once: the same digests, and times that stay together."""
    walks = [
        [[int(v) for v in np.random.default_rng((user, n)).integers(100, 400, 2)] + [0] for n in range(num_clicks)]
        for user in range(NUM_USERS)
    ]

    def walk(user: int, prefix: str) -> tuple[list[str], list[float]]:
        digests, seconds = [], []
        for n, click in enumerate(walks[user]):
            target = f"{prefix} {n // 20}"  # a target takes some twenty clicks
            start = time.perf_counter()
            digests.append(_step(server, "slice", target, f"user {user}", click)["mask_digest"])
            seconds.append(time.perf_counter() - start)
        return digests, seconds

    solo = [walk(user, "solo")[0] for user in range(NUM_USERS)]
    with ThreadPoolExecutor(NUM_USERS) as users:
        together = list(users.map(lambda user: walk(user, "together"), range(NUM_USERS)))
    at_once = [digests for digests, _ in together]
    num_different = sum(a != b for pair in zip(solo, at_once, strict=True) for a, b in zip(*pair, strict=True))
    times = np.array([s for _, seconds in together for s in seconds])
    p50, p99 = np.percentile(times, [50, 99])
    total = f"{NUM_USERS} users x {num_clicks} clicks"
    return [
        Claim("interleaved answers that differ from the solo run", num_different, 0, False, total),
        Claim("p99/p50 of clicks with 16 users", p99 / p50, 4, False, f"p50 {1000 * p50:.0f} ms; {total}"),
    ]


if __name__ == "__main__":
    main()
