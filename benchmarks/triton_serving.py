"""Clicks through a real Triton server on this machine: throughput, cost of the way, new weights and a crash under load.

Side by side in one run: the same graphs in this process are asked in turn with the server's. ``make bench-triton``.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

import numpy as np
from claims import Claim, report
from export_latency import interleaved
from tritonclient.grpc import InferenceServerClient

from imis_net.adapters.graph_runtimes import Build
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.adapters.triton import TritonSegmenter
from imis_net.errors import ImisError
from imis_net.images import read_volume
from imis_net.metrics import iou
from imis_net.prompts import ImageEmbedding, Prompt
from imis_net.segmenter import BUNDLE_DIR, DEFAULT_MODEL, Segmenter, load_segmenter
from imis_net.serving import repository as repo
from imis_net.serving.reload import exchange
from imis_net.serving.tritonserver import LOOPBACK, TritonServer

WEIGHTS = BUNDLE_DIR / "models" / f"{DEFAULT_MODEL}.safetensors"
ANNOTATORS = (1, 2, 4, 8, 16)
CLICK = Prompt(point_coords=[[263, 223]], point_labels=[1])
BUILD = Build("onnxruntime")
SAME_MASK_IOU = 0.98
NUM_TURNS = 6
"""Of each way to the decoder."""
NUM_RESTED, LONG_REST_S = 3, 0.2
"""Clicks in a turn that come when the processor has gone to sleep, and how long that takes."""
NUM_BEFORE = 120
"""Clicks of each annotator before an exchange: about as many in all as during it, or p99 would be of other ranks."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=30, help="per annotator (default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512], help="model frames in px")
    args = parser.parse_args()
    logging.getLogger("imis_net").setLevel(logging.ERROR)  # each click that meets no server
    return report("triton_serving", (claim for side in args.sides for claim in measure(side, args.clicks)))


def measure(side: int, num_clicks: int) -> Iterator[Claim]:
    torch_segmenter = load_segmenter(image_size=side)
    image = read_volume(ROOT / "apps/imis/sample_studies/abdomen_ct_1.nii.gz").slice_rgb(0)
    with tempfile.TemporaryDirectory() as name:
        graphs, repository = Path(name) / "graphs", Path(name) / "repository"
        local = GraphSegmenter(torch_segmenter, graphs, BUILD)
        manifest = repo.describe(torch_segmenter, {"image_size": side}, BUILD)
        repo.build(repository, ROOT / "triton_models", manifest, WEIGHTS, graphs)
        with TritonServer(repository, repo.MODELS) as server:
            remote = TritonSegmenter(server.grpc_url, deadline_s=120)
            embedding = remote.encode_image(image)
            yield overhead(side, local, remote, image, num_clicks)
            yield wire(side, server, local, image)
            yield from throughput(side, server, embedding, num_clicks)
            yield single_flight(side, server)
            yield from hot_reload(side, server, embedding, manifest, graphs)
            yield killed(side, server, local, image)


def overhead(side: int, local: Segmenter, remote: TritonSegmenter, image: np.ndarray, num_clicks: int) -> Claim:
    """Of an annotator who clicks on, and beside it of one who waits so long that the processor has gone to sleep, which
    is no cost of the way but told from it badly."""
    ways = [(segmenter, segmenter.encode_image(image)) for segmenter in (local, remote)]
    calls = [lambda s=s, e=e: s.predict(e, CLICK) for s, e in ways]  # type: ignore[misc]
    in_process, through = interleaved(calls, NUM_TURNS, num_clicks, rest_s=0)
    rested = interleaved(calls, NUM_TURNS, NUM_RESTED, LONG_REST_S)
    beside = (
        f"in process {in_process:.1f} ms, through Triton {through:.1f} ms, p50; "
        f"{LONG_REST_S} s after the last {rested[0]:.1f} and {rested[1]:.1f} ms"
    )
    return Claim(f"{side} px: a click's way to Triton and back, ms", through - in_process, 5, False, beside)


def wire(side: int, server: TritonServer, local: Segmenter, image: np.ndarray) -> Claim:
    """Bytes counted by a relay between client and server, with nothing in shared memory."""
    num_clicks = 5
    with relay(server.grpc_port) as (port, counts):
        remote = TritonSegmenter(f"{LOOPBACK}:{port}", deadline_s=120, use_shared_memory=False)
        embedding = remote.encode_image(image)
        remote.predict(embedding, CLICK)
        before = list(counts)
        for _ in range(num_clicks):
            remote.predict(embedding, CLICK)
        sent, received = ((now - then) / num_clicks for now, then in zip(counts, before, strict=True))
    whole = local.encode_image(image).num_bytes
    beside = f"{sent:.0f} bytes there, {received:.0f} back; embedding {whole}, image {image.nbytes}"
    return Claim(
        f"{side} px: bytes of a further click / of its embedding", (sent + received) / whole, 0.1, False, beside
    )


@contextmanager
def relay(port: int) -> Iterator[tuple[int, list[int]]]:
    """A port that leads to ``port`` of this machine, and the bytes that went there and came back so far."""
    counts = [0, 0]

    def pump(source: socket.socket, target: socket.socket, direction: int) -> None:
        with suppress(OSError):  # either end was closed
            while data := source.recv(1 << 16):
                counts[direction] += len(data)
                target.sendall(data)
        target.close()

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                onward = socket.create_connection((LOOPBACK, port))
                for direction, ends in enumerate(((client, onward), (onward, client))):
                    threading.Thread(target=pump, args=(*ends, direction), daemon=True).start()

    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], counts


def throughput(side: int, server: TritonServer, embedding: ImageEmbedding, num_clicks: int) -> Iterator[Claim]:
    alone = 0.0
    for number in ANNOTATORS:
        start = time.perf_counter()
        times_ms = annotators(server, embedding, number, num_clicks)
        rate = len(times_ms) / (time.perf_counter() - start)
        alone = alone or rate
        p50, p99 = np.percentile(times_ms, [50, 99])
        # Against one annotator of the same run; two cores can at most double it, a queue must not lose any.
        beside = f"{rate:.1f} clicks/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        yield Claim(f"{side} px: clicks/s of {number} annotators over those of one", rate / alone, 0.9, True, beside)


def annotators(server: TritonServer, embedding: ImageEmbedding, number: int, num_clicks: int) -> list[float]:
    """Milliseconds of each click of so many users, who click again as soon as they are answered."""

    def work(segmenter: TritonSegmenter) -> list[float]:
        return [timed_ms(lambda: segmenter.predict(embedding, CLICK)) for _ in range(num_clicks)]

    segmenters = [TritonSegmenter(server.grpc_url, deadline_s=120) for _ in range(number)]
    with ThreadPoolExecutor(number) as pool:
        return [time_ms for times_ms in pool.map(work, segmenters) for time_ms in times_ms]


def single_flight(side: int, server: TritonServer) -> Claim:
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3)).astype(np.uint8)
    segmenters = [TritonSegmenter(server.grpc_url, deadline_s=120) for _ in range(6)]
    before = num_encoded(server)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda s: s.encode_image(image), segmenters))
    runs = num_encoded(server) - before
    return Claim(f"{side} px: encoder runs for one new image of six users at once", runs, 1, False)


def num_encoded(server: TritonServer) -> int:
    with InferenceServerClient(server.grpc_url) as client:
        stats = client.get_inference_statistics(repo.ENCODER, as_json=True)["model_stats"]
    return sum(int(version.get("inference_count", 0)) for version in stats)


def hot_reload(
    side: int, server: TritonServer, embedding: ImageEmbedding, manifest: repo.Manifest, graphs: Path
) -> Iterator[Claim]:
    """Two annotators before, during and after an exchange of the decoder."""
    before = annotators(server, embedding, 2, NUM_BEFORE)
    runs = num_encoded(server)
    segmenters = [TritonSegmenter(server.grpc_url, deadline_s=120) for _ in range(2)]
    with clicking(segmenters, embedding) as seen:
        load_s = timed_ms(lambda: exchange(server.grpc_url, server.repository, manifest, WEIGHTS, graphs)) / 1000
    during = [click.time_ms for click in seen]
    p99 = [float(np.percentile(times, 99)) for times in (before, during)]
    failures = sum(click.mask is None for click in seen)
    beside = f"before {p99[0]:.0f} ms, during {p99[1]:.0f} ms, {len(during)} clicks, {load_s:.1f} s to load"
    yield Claim(f"{side} px: clicks that failed while new weights were loaded", failures, 0, False)
    yield Claim(f"{side} px: images encoded again for new weights", num_encoded(server) - runs, 0, False)
    yield Claim(f"{side} px: p99 while new weights are loaded over p99 before", p99[1] / p99[0], 2, False, beside)


def killed(side: int, server: TritonServer, local: Segmenter, image: np.ndarray) -> Claim:
    """Two annotators while Triton is killed and started again, with a segmenter of their own to fall back on."""
    remote = TritonSegmenter(server.grpc_url, fallback=local)
    embedding = remote.encode_image(image)
    wanted = local.predict(local.encode_image(image), CLICK).mask
    with clicking([remote, remote], embedding) as seen:
        time.sleep(0.5)
        server.kill()
        server.start()
        give_up = time.monotonic() + 30
        while remote.status()["in_use"] != "triton" and time.monotonic() < give_up:
            time.sleep(0.1)
        again = remote.status()["in_use"]
        time.sleep(0.5)
    wrong = sum(click.mask is None or iou(click.mask, wanted) < SAME_MASK_IOU for click in seen)
    slowest = max(click.time_ms for click in seen)
    beside = f"{len(seen)} clicks, the slowest {slowest:.0f} ms; in use at the end: {again}"
    return Claim(f"{side} px: clicks without the right mask, Triton killed and started again", wrong, 0, False, beside)


@dataclass(frozen=True)
class Click:
    """Attributes:
    mask: None where it failed.
    """

    time_ms: float
    mask: np.ndarray | None


@contextmanager
def clicking(segmenters: Sequence[Segmenter], embedding: ImageEmbedding) -> Iterator[list[Click]]:
    """So many users who click without end meanwhile; what they saw is complete afterwards."""
    seen: list[Click] = []
    stop = threading.Event()

    def click(segmenter: Segmenter) -> None:
        while not stop.is_set():
            start, mask = time.perf_counter(), None
            with suppress(ImisError):
                mask = segmenter.predict(embedding, CLICK).mask
            seen.append(Click((time.perf_counter() - start) * 1000, mask))

    threads = [threading.Thread(target=click, args=(segmenter,)) for segmenter in segmenters]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def timed_ms(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    sys.exit(main())
