"""The compact default's encoder and decoder: torch, which the app runs, beside its graphs, on one thread and all cores.

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
REST_S = 0.02
"""Before each call: the threads of the one before it look for work a while before they sleep."""
CLICK = Prompt(np.array([[263, 223]]), np.array([1]))
RUNTIMES = {"ONNX Runtime": Build("onnxruntime"), "OpenVINO": Build("openvino")}
"""In float32, the only precision that passes the gate."""
NUM_CLICKS = 10
"""Of an annotator on an image, the first mask included."""


def main() -> int:
    local = load_segmenter()
    with tempfile.TemporaryDirectory() as folder:
        return report("export_latency", _claims(local, Path(folder) / "graphs"))


def _claims(local: TorchSegmenter, folder: Path) -> Iterator[Claim]:
    """The goals are for all cores; what one thread takes is told beside them."""
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    times_ms = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        graphs = {name: GraphSegmenter(local, folder, build, threads) for name, build in RUNTIMES.items()}
        times_ms[threads] = _times_ms({"torch": local, **graphs}, image)
    cost, rate = measure_cost(local, image, CLICK), matrix_gflops()
    for what, gflop, goal_ms in (
        ("encode and first mask", cost.encode_gflop + cost.decode_gflop, 150),
        ("further click", cost.decode_gflop, 20),
    ):
        default, *others = times_ms[threads][what]
        rivals = ", ".join(f"{name} {ms:.1f}" for name, ms in zip(graphs, others, strict=True))
        on_one = ", ".join(f"{ms:.1f}" for ms in times_ms[1][what])
        beside = f"{rivals}, floor {1e3 * gflop / rate:.1f}; on one thread {on_one}"
        yield Claim(f"{what}, torch, all cores, ms", default, goal_ms, at_least=False, beside=beside)
    yield from _whole_image({"torch": local, **graphs}, image)
    for name, segmenter in graphs.items():
        logits = [s.predict(s.encode_image(image), CLICK).low_res_mask for s in (local, segmenter)]
        difference = float(np.abs(logits[0] - logits[1]).max())
        yield Claim(f"largest difference of a mask logit, {name}", difference, 1e-3, at_least=False)


def _times_ms(segmenters: dict[str, TorchSegmenter], image: np.ndarray) -> dict[str, list[float]]:
    """By what is asked, of each segmenter."""
    encode = interleaved([lambda s=s: s.encode_image(image) for s in segmenters.values()])  # type: ignore[misc]
    asked = [(s, s.encode_image(image)) for s in segmenters.values()]
    click = interleaved([lambda s=s, e=e: s.predict(e, CLICK) for s, e in asked])  # type: ignore[misc]
    return {"encode and first mask": [e + c for e, c in zip(encode, click, strict=True)], "further click": click}


def _whole_image(segmenters: dict[str, TorchSegmenter], image: np.ndarray) -> Iterator[Claim]:
    """The default should be the fastest, or hardly slower: graphs cost an export before the first start."""

    def annotate(segmenter: TorchSegmenter) -> None:
        embedding = segmenter.encode_image(image)
        for _ in range(NUM_CLICKS):
            segmenter.predict(embedding, CLICK)

    times_ms = interleaved([lambda s=s: annotate(s) for s in segmenters.values()])  # type: ignore[misc]
    beside = ", ".join(f"{name} {ms:.0f} ms" for name, ms in zip(segmenters, times_ms, strict=True))
    what = f"an image and {NUM_CLICKS} clicks, the default / the fastest, all cores"
    yield Claim(what, times_ms[0] / min(times_ms), 1.1, at_least=False, beside=beside)


def interleaved(
    calls: Sequence[Callable[[], object]], num_turns: int = NUM_CALLS, in_a_row: int = 1, rest_s: float = REST_S
) -> list[float]:
    """Median milliseconds of each, taken in turns so that all meet the same machine.

    ``in_a_row``: calls in a turn. If they are several, one that is not counted comes before them, since it finds the
    caches full of the others' work.
    """
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(num_turns):
        for call, own in zip(calls, seconds, strict=True):
            if in_a_row > 1:
                call()
            for _ in range(in_a_row):
                time.sleep(rest_s)
                start = time.perf_counter()
                call()
                own.append(time.perf_counter() - start)
    return [1e3 * float(np.median(own)) for own in seconds]


def matrix_gflops() -> float:
    """Matrix products of this machine on torch's threads, GFLOP/s."""
    products, gflop = matrix_products()
    return gflop / (interleaved([products])[0] / 1e3)


def matrix_products(kind: torch.dtype = torch.float32, number: int = 1) -> tuple[Callable[[], object], float]:
    """So many products of a ViT-B layer's size, to be timed beside other work, and their GFLOP."""
    a, b = torch.randn(4096, 768).to(kind), torch.randn(768, 3072).to(kind)
    return lambda: [a @ b for _ in range(number)], number * 2 * a.numel() * b.shape[1] / 1e9


if __name__ == "__main__":
    sys.exit(main())
