"""Engines of TensorRT, or of TensorRT for RTX, run on this machine's GPU."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from imis_net.errors import ExportError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
FACTS = "engines.json"
"""Beside the engines: what made them, for whom."""


def load_module(backend: str) -> ModuleType:
    """Raises:
    ExportError: it is not installed.
    """
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        package = "tensorrt-rtx-cu13" if backend == "tensorrt-rtx" else "tensorrt"
        raise ExportError(f"{backend} is not installed here ({error}): pip install {package}") from error


def check_gpu(backend: str) -> str:
    """This machine's compute capability, such as "89".

    Raises:
        ExportError: there is none to run engines on.
    """
    if not torch.cuda.is_available():
        raise ExportError(f"{backend} runs on an NVIDIA GPU: torch {torch.__version__} sees none on this machine")
    return "{}{}".format(*torch.cuda.get_device_capability())


class Engine:
    """One engine; calls follow one another, since an execution context is one caller's."""

    def __init__(self, path: Path, backend: str) -> None:
        """Raises:
        ExportError: no GPU, no such file, or one for another GPU or another version.
        """
        sm = check_gpu(backend)
        self._trt = load_module(backend)
        check_facts(path.parent, self._trt.__version__, sm)
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine(path.read_bytes()) if path.is_file() else None
        if engine is None:
            raise ExportError(f"{path.name}: not an engine that {backend} {self._trt.__version__} can load")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT for name in names}
        self.input_names = [name for name in names if is_input[name]]
        self._output_names = [name for name in names if not is_input[name]]
        self._engine, self._context = engine, engine.create_execution_context()
        self._lock, self._stream = threading.Lock(), torch.cuda.Stream()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        given = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])).cuda() for name in self.input_names}
        return [answer.cpu().numpy() for answer in self.run_on_gpu(given)]

    def run_on_gpu(self, given: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Contiguous tensors of the GPU in and out; done when it returns."""
        with self._lock:
            self._stream.wait_stream(torch.cuda.current_stream())  # which made the inputs
            with torch.cuda.stream(self._stream):
                for name, tensor in given.items():
                    if not self._context.set_input_shape(name, tuple(tensor.shape)):
                        raise ExportError(f"{name}: shape {list(tensor.shape)} is outside the engine's profile")
                answers = [self._empty(name) for name in self._output_names]
                for name, tensor in [*given.items(), *zip(self._output_names, answers, strict=True)]:
                    self._context.set_tensor_address(name, tensor.data_ptr())
                if not self._context.execute_async_v3(self._stream.cuda_stream):
                    raise ExportError("the engine did not run")
            self._stream.synchronize()
        return answers

    def _empty(self, name: str) -> torch.Tensor:
        dtype = torch.from_numpy(np.empty(0, self._trt.nptype(self._engine.get_tensor_dtype(name)))).dtype
        return torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda")


def check_facts(folder: Path, version: str, sm: str) -> None:
    """Raises:
    ExportError: the engines were built by another version, or for other GPUs.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        built_by, built_for = str(facts["version"]), list(facts["compute_capabilities"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExportError(f"{folder.name}: no readable {FACTS} beside the engines") from error
    if built_by != version:
        raise ExportError(f"{folder.name}: engines of version {built_by}, installed is {version}; build them again")
    if sm not in built_for:
        raise ExportError(f"{folder.name}: engines for SM {', '.join(built_for)}, this GPU is {sm}; build them again")
