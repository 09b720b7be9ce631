"""What a segmenter costs: milliseconds and GFLOP of one encoding and of one click."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from imis_net.prompts import Prompt
from imis_net.segmenter import Segmenter

NUM_TIMED = 5


@dataclass(frozen=True)
class Cost:
    """Medians of ``NUM_TIMED`` calls in milliseconds; operations (a multiply and an add are two) in units of 1e9."""

    encode_ms: float
    decode_ms: float
    encode_gflop: float
    decode_gflop: float

    def __str__(self) -> str:
        encode = f"encode {self.encode_ms:.1f} ms {self.encode_gflop:.2f} GFLOP"
        return f"{encode}, decode {self.decode_ms:.1f} ms {self.decode_gflop:.2f} GFLOP"


def measure_cost(segmenter: Segmenter, image: np.ndarray, prompt: Prompt) -> Cost:
    """The cost on one image, uint8 [H, W, 3], of one prompt; the first call of each kind is not timed."""
    embedding = segmenter.encode_image(image)
    encode_gflop = _gflop(lambda: segmenter.encode_image(image))
    decode_gflop = _gflop(lambda: segmenter.predict(embedding, prompt))
    encode_ms = _milliseconds(lambda: segmenter.encode_image(image))
    return Cost(encode_ms, _milliseconds(lambda: segmenter.predict(embedding, prompt)), encode_gflop, decode_gflop)


def _gflop(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def _milliseconds(call: Callable[[], object]) -> float:
    elapsed = []
    for _ in range(NUM_TIMED):
        start = time.perf_counter()
        call()
        elapsed.append(1000 * (time.perf_counter() - start))
    return float(np.median(elapsed))
