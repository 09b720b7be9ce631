"""The compact default's encoder and decoder: torch beside its graphs, in one run, on one thread and on all cores.

    python benchmarks/export_latency.py

Medians of interleaved calls. The floor is the graph's own operations at this machine's measured rate of float32 matrix
products. Graphs are exported to a temporary folder, and only where they agree with torch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

from claims import Claim, report

from imis_net.adapters.graph_runtimes import Build
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.evaluation.cost import measure_cost
from imis_net.prompts import Prompt
from imis_net.segmenter import TorchSegmenter, load_segmenter

NUM_CALLS = 15
CLICK = Prompt(np.array([[263, 223]]), np.array([1]))
RUNTIMES = {"ONNX Runtime": Build("onnxruntime"), "OpenVINO": Build("openvino")}
"""In float32; the first is what the goals are for."""


def main() -> int:
    local = load_segmenter()
    with tempfile.TemporaryDirectory() as folder:
        return report("export_latency", _claims(local, Path(folder) / "graphs"))


def _claims(local: TorchSegmenter, folder: Path) -> Iterator[Claim]:
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        graphs = {name: GraphSegmenter(local, folder, build, threads) for name, build in RUNTIMES.items()}
        yield from _speed(local, graphs, image, f"{threads} thread{'s' * (threads > 1)}")
    for name, segmenter in graphs.items():
        logits = [s.predict(s.encode_image(image), CLICK).low_res_mask for s in (local, segmenter)]
        difference = float(np.abs(logits[0] - logits[1]).max())
        yield Claim(f"largest difference of a mask logit, {name}", difference, 1e-3, at_least=False)


def _speed(local: TorchSegmenter, graphs: dict[str, GraphSegmenter], image: np.ndarray, on: str) -> Iterator[Claim]:
    segmenters = [local, *graphs.values()]
    encode = interleaved([lambda s=s: s.encode_image(image) for s in segmenters])  # type: ignore[misc]
    embeddings = [s.encode_image(image) for s in segmenters]
    click = interleaved([lambda s=s, e=e: s.predict(e, CLICK) for s, e in zip(segmenters, embeddings, strict=True)])  # type: ignore[misc]
    cost, rate = measure_cost(local, image, CLICK), matrix_gflops()
    for what, (torch_ms, *graph_ms), gflop in (
        ("encode", encode, cost.encode_gflop),
        ("click", click, cost.decode_gflop),
    ):
        for name, ms in zip(graphs, graph_ms, strict=True):
            floor = f"torch {torch_ms:.1f} ms, graphs {ms:.1f} ms, floor {1e3 * gflop / rate:.1f} ms"
            yield Claim(f"{what}, torch / {name}, {on}", torch_ms / ms, 1.0, beside=floor)
    name, encode_ms, click_ms = next(iter(graphs)), encode[1], click[1]
    yield Claim(f"encode and first mask, {name}, {on}, s", (encode_ms + click_ms) / 1e3, 0.15, at_least=False)
    yield Claim(f"further click, {name}, {on}, ms", click_ms, 20, at_least=False)


def interleaved(calls: Sequence[Callable[[], object]], num_calls: int = NUM_CALLS) -> list[float]:
    """Median milliseconds of each, taken in turns so that all meet the same machine."""
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(num_calls):
        for call, own in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            own.append(time.perf_counter() - start)
    return [1e3 * float(np.median(own)) for own in seconds]


def matrix_gflops(kind: torch.dtype = torch.float32) -> float:
    """Matrix products of this machine on torch's threads, GFLOP/s."""
    a, b = torch.randn(4096, 768).to(kind), torch.randn(768, 3072).to(kind)
    return 2 * a.numel() * b.shape[1] / 1e9 / (interleaved([lambda: a @ b])[0] / 1e3)


if __name__ == "__main__":
    sys.exit(main())
