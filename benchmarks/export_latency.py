"""The compact default's encoder and decoder: torch beside its graphs on ONNX Runtime, in one run, on one thread.

    python benchmarks/export_latency.py [--threads 1]

Medians of interleaved calls. The floor is the graph's own operations at this machine's measured rate of float32 matrix
products. Graphs are exported to a temporary folder, and only where they agree with torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

from claims import Claim, report

from imis_net.adapters.graphs import GraphSegmenter
from imis_net.evaluation.cost import measure_cost
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter, load_segmenter

NUM_CALLS = 15
CLICK = Prompt(np.array([[263, 223]]), np.array([1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    local = load_segmenter()
    with tempfile.TemporaryDirectory() as folder:
        graphs = GraphSegmenter(local, Path(folder) / "graphs", threads=threads)
        return report("export_latency", _claims(local, graphs, threads))


def _claims(local: TorchSegmenter, graphs: GraphSegmenter, threads: int) -> Iterator[Claim]:
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    both = (local, graphs)
    embeddings = [s.encode_image(image) for s in both]
    encode = _interleaved([lambda s=s: s.encode_image(image) for s in both])  # type: ignore[misc]
    click = _interleaved([lambda s=s, e=e: s.predict(e, CLICK) for s, e in zip(both, embeddings, strict=True)])  # type: ignore[misc]
    cost, rate = measure_cost(local, image, CLICK), _matrix_gflops()
    names = f"{threads} thread{'s' * (threads > 1)}"
    for what, (torch_ms, graph_ms), gflop in (
        ("encode", encode, cost.encode_gflop),
        ("click", click, cost.decode_gflop),
    ):
        floor = f"torch {torch_ms:.0f} ms, graphs {graph_ms:.0f} ms, floor {1e3 * gflop / rate:.0f} ms"
        yield Claim(f"{what}, torch / ONNX Runtime, {names}", torch_ms / graph_ms, 1.0, beside=floor)
    first_s = (encode[1] + click[1]) / 1e3
    yield Claim(f"encode and first mask, ONNX Runtime, {names}, s", first_s, 0.15, at_least=False)
    yield Claim(f"further click, ONNX Runtime, {names}, ms", click[1], 20, at_least=False)
    difference = np.abs(
        local.predict(embeddings[0], CLICK).low_res_mask - graphs.predict(embeddings[1], CLICK).low_res_mask
    ).max()
    yield Claim("largest difference of a mask logit", float(difference), 1e-3, at_least=False)


def _interleaved(calls: list[Callable[[], object]]) -> list[float]:
    """Median milliseconds of each, taken in turns so that all meet the same machine."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(NUM_CALLS):
        for call, own in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [1e3 * float(np.median(own)) for own in seconds]


def _matrix_gflops() -> float:
    """Float32 matrix products of this machine on these threads, GFLOP/s."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / 1e9 / (_interleaved([lambda: a @ a])[0] / 1e3)


if __name__ == "__main__":
    sys.exit(main())
