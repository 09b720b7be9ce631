"""What runs one graph file: ONNX Runtime, OpenVINO, or an engine of TensorRT. Arrays by name in, arrays out."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imis_net.errors import ExportError

Arrays = Mapping[str, np.ndarray]
TRUNK, NECK, TEXT_ENCODER, DECODER = "trunk", "neck", "text_encoder", "decoder"


def decoder_name(has_text: bool, has_mask: bool) -> str:
    return DECODER + "_text" * has_text + "_mask" * has_mask


def decoder_names(takes_text: bool) -> list[str]:
    """Of all decoders of a network: what a prompt lacks is no input of its decoder."""
    return [decoder_name(*kind) for kind in itertools.product((False, True)[: 1 + takes_text], (False, True))]


class Graph(Protocol):
    """One loaded graph; safe to call from several threads."""

    input_names: list[str]

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """All outputs, in the graph's order."""


@dataclass(frozen=True)
class Build:
    """How graphs are run.

    Attributes:
        backend: a key of ``PRECISIONS``.
        precision: of the arithmetic; inputs and outputs are float32 whatever it is.
    """

    backend: str = "onnxruntime"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS.get(self.backend, ()):
            offered = "; ".join(f"{backend}: {', '.join(names)}" for backend, names in PRECISIONS.items())
            raise ExportError(f"got {self}, expected a backend and precision of {offered}")

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16"),
    "tensorrt": ("fp32", "fp16"),
    "tensorrt-rtx": ("fp32", "fp16"),
}
"""Exact first: what a build falls back to is the one before it."""
ENGINE_SUFFIX = ".plan"
SLOWER_FUSIONS = ("SkipLayerNormFusion",)
"""Of ONNX Runtime on a CPU: a sum and a norm are vectorised, the two fused are not."""


def open_graph(folder: Path, name: str, build: Build, threads: int = 0) -> Graph:
    """Load ``name`` from a folder of graphs.

    Args:
        threads: of one operation on a CPU; 0 is the runtime's choice.

    Raises:
        ExportError: the runtime is not installed, or the file is missing or cannot be loaded.
    """
    if build.backend.startswith("tensorrt"):
        from imis_net.adapters.tensorrt import Engine  # needs a GPU

        return Engine(folder / f"{name}{ENGINE_SUFFIX}", build.backend)
    path = folder / f"{name}.onnx"
    if not path.is_file():
        raise ExportError(f"{folder.name}: expected the graphs of a network, {path.name} is missing")
    try:
        if build.backend == "openvino":
            return OpenVinoGraph(path, build.precision, threads)
        return OnnxRuntimeGraph(path, threads)
    except Exception as error:  # their errors have no common base
        if importlib.util.find_spec(build.backend) is None:
            raise ExportError(f"{build.backend} is not installed: pip install {build.backend}") from error
        raise ExportError(f"{path.name}: cannot be loaded ({type(error).__name__})") from error


class OnnxRuntimeGraph:
    def __init__(self, path: Path, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it also warns of what it leaves unfolded
        # Threads that wait by spinning take the cores from whoever else works: three times slower beside one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER_FUSIONS
        )
        self.input_names = [i.name for i in self._session.get_inputs()]

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        return self._session.run(None, dict(inputs))


class OpenVinoGraph:
    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import openvino

        kind = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[precision]
        options = {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        with _FIRST_LOADING:
            core = _openvino_core()
        self._model = core.compile_model(path, "CPU", options)
        self.input_names = [i.get_any_name() for i in self._model.inputs]
        self._idle: deque[Any] = deque()

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        # A request is one thread's; it owns the memory of all layers, which would be fetched anew with each new one.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        answers = request.infer(dict(inputs), share_inputs=True)
        outputs = [np.array(answers[output]) for output in self._model.outputs]
        self._idle.append(request)
        return outputs


_FIRST_LOADING = threading.Lock()
"""``functools.cache`` alone would make a core for each thread that asks before the first is made."""


@functools.cache
def _openvino_core() -> Any:
    """One for as long as the process lives.

    Each would put a signal stack of its own under the thread that loads, and take it away when its last graph goes, in
    whatever thread and order that happens: the next signal would then end the process without a word.
    """
    import openvino

    return openvino.Core()
