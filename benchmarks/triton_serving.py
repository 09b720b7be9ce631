"""Clicks through a real Triton server on this machine: throughput, what the way costs, new weights under load.

Side by side in one run: the same network in this process is asked in turn with the server. ``make bench-triton``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundles" / "imis_net"))

import numpy as np
from claims import Claim, report
from tritonclient.grpc import InferenceServerClient

from imis_net.adapters.triton import TritonSegmenter
from imis_net.images import read_volume
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import BUNDLE_DIR, DEFAULT_MODEL, Segmenter, TorchSegmenter, load_segmenter
from imis_net.serving import repository as repo
from imis_net.serving.reload import exchange
from imis_net.serving.tritonserver import TritonServer

WEIGHTS = BUNDLE_DIR / "models" / f"{DEFAULT_MODEL}.safetensors"
ANNOTATORS = (1, 2, 4, 8, 16)
CLICK = Prompt(point_coords=[[263, 223]], point_labels=[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=30, help="per annotator (default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512], help="model frames in px")
    args = parser.parse_args()
    claims: list[Claim] = []
    for side in args.sides:
        claims += measure(side, args.clicks)
    return report("triton_serving", claims)


def measure(side: int, num_clicks: int) -> list[Claim]:
    local = load_segmenter(image_size=side)
    with tempfile.TemporaryDirectory() as folder:
        manifest = repo.describe(local, {"image_size": side})
        repo.build(Path(folder) / "repository", ROOT / "triton_models", manifest, WEIGHTS)
        with TritonServer(Path(folder) / "repository", repo.MODELS) as server:
            remote = TritonSegmenter(server.grpc_url, deadline_s=120)
            image = read_volume(ROOT / "apps/imis/sample_studies/abdomen_ct_1.nii.gz").slice_rgb(0)
            embedding = remote.encode_image(image)
            claims = overhead(side, local, remote, image, num_clicks)
            claims += throughput(side, server, embedding, num_clicks)
            claims += single_flight(side, server)
            return claims + hot_reload(side, server, embedding, manifest)


def overhead(
    side: int, local: TorchSegmenter, remote: TritonSegmenter, image: np.ndarray, num_clicks: int
) -> list[Claim]:
    """In turn, so that whatever else the machine does meets both."""
    ways: list[tuple[Segmenter, ImageEmbedding]] = [
        (local, local.encode_image(image)),
        (remote, remote.encode_image(image)),
    ]
    times_ms: list[list[float]] = [[], []]
    for _ in range(num_clicks):
        for times, (segmenter, embedding) in zip(times_ms, ways, strict=True):
            times.append(timed_ms(lambda s=segmenter, e=embedding: s.predict(e, CLICK)))  # type: ignore[misc]
    in_process, through = (float(np.median(times)) for times in times_ms)
    beside = f"in process {in_process:.1f} ms, through Triton {through:.1f} ms, p50"
    return [Claim(f"{side} px: a click's way to Triton and back, ms", through - in_process, 5, False, beside)]


def throughput(side: int, server: TritonServer, embedding: ImageEmbedding, num_clicks: int) -> list[Claim]:
    claims, alone = [], 0.0
    for number in ANNOTATORS:
        start = time.perf_counter()
        times_ms = annotators(server, embedding, number, num_clicks)
        rate = len(times_ms) / (time.perf_counter() - start)
        alone = alone or rate
        p50, p99 = np.percentile(times_ms, [50, 99])
        claims.append(
            # Against one annotator of the same run; two cores can at most double it, a queue must not lose any.
            Claim(
                f"{side} px: clicks/s of {number} annotators over those of one",
                rate / alone,
                0.9,
                True,
                f"{rate:.1f} clicks/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms",
            )
        )
    return claims


def annotators(server: TritonServer, embedding: ImageEmbedding, number: int, num_clicks: int) -> list[float]:
    """Milliseconds of each click of so many users, who click again as soon as they are answered."""

    def work(segmenter: TritonSegmenter) -> list[float]:
        return [timed_ms(lambda: segmenter.predict(embedding, CLICK)) for _ in range(num_clicks)]

    segmenters = [TritonSegmenter(server.grpc_url, deadline_s=120) for _ in range(number)]
    with ThreadPoolExecutor(number) as pool:
        return [time_ms for times_ms in pool.map(work, segmenters) for time_ms in times_ms]


def single_flight(side: int, server: TritonServer) -> list[Claim]:
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3)).astype(np.uint8)
    segmenters = [TritonSegmenter(server.grpc_url, deadline_s=120) for _ in range(6)]
    before = num_encoded(server)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda s: s.encode_image(image), segmenters))
    runs = num_encoded(server) - before
    return [Claim(f"{side} px: encoder runs for one new image of six users at once", runs, 1, False)]


def num_encoded(server: TritonServer) -> int:
    with InferenceServerClient(server.grpc_url) as client:
        stats = client.get_inference_statistics(repo.ENCODER, as_json=True)["model_stats"]
    return sum(int(version.get("inference_count", 0)) for version in stats)


def hot_reload(side: int, server: TritonServer, embedding: ImageEmbedding, manifest: repo.Manifest) -> list[Claim]:
    """Two annotators before, during and after an exchange of the decoder."""
    before = annotators(server, embedding, 2, 40)
    during: list[float] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def click() -> None:
        segmenter = TritonSegmenter(server.grpc_url, deadline_s=120)
        while not stop.is_set():
            try:
                during.append(timed_ms(lambda: segmenter.predict(embedding, CLICK)))
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=click) for _ in range(2)]
    runs = num_encoded(server)
    for thread in threads:
        thread.start()
    load_s = timed_ms(lambda: exchange(server.grpc_url, server.repository, manifest, WEIGHTS)) / 1000
    stop.set()
    for thread in threads:
        thread.join()
    p99 = [float(np.percentile(times, 99)) for times in (before, during)]
    beside = f"before {p99[0]:.0f} ms, during {p99[1]:.0f} ms, {len(during)} clicks, {load_s:.1f} s to load"
    return [
        Claim(f"{side} px: clicks that failed while new weights were loaded", len(errors), 0, False),
        Claim(f"{side} px: images encoded again for new weights", num_encoded(server) - runs, 0, False),
        Claim(f"{side} px: p99 while new weights are loaded over p99 before", p99[1] / p99[0], 2, False, beside),
    ]


def timed_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    sys.exit(main())
