"""ONNX graphs to engines: by TensorRT for the GPU that is here, by TensorRT for RTX ahead of time for others.

Both have one builder's API and parser: what the second compiles on a machine without a GPU, the first takes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from imis_net import export
from imis_net.adapters.graph_runtimes import ENGINE_SUFFIX, TEXT_ENCODER
from imis_net.adapters.tensorrt import FACTS, check_gpu, load_module
from imis_net.errors import ExportError
from imis_net.prompts import MAX_NUM_CLICKS

AHEAD_OF_TIME = ("80", "86", "89", "120")
"""Ampere, Ada and Blackwell; what TensorRT for RTX compiles for without seeing them."""
MAX_IMAGES, MAX_TARGETS, MAX_POINTS = 4, 32, MAX_NUM_CLICKS + 2
TIMING_CACHE = "timing.cache"


def build_engines(graphs: Path, folder: Path, backend: str, compute_capabilities: Sequence[str] = ()) -> None:
    """Compile every graph but the names', which is copied; the folder appears whole.

    Args:
        compute_capabilities: the GPUs to compile for, with TensorRT for RTX; TensorRT compiles for the one here.

    Raises:
        ExportError: no such compiler or GPU, or a graph that it does not take, with its words.
    """
    trt = load_module(backend)
    sms = list(compute_capabilities or AHEAD_OF_TIME) if backend == "tensorrt-rtx" else [check_gpu(backend)]
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        for path in sorted(graphs.glob("*.onnx")):
            if path.stem == TEXT_ENCODER:
                shutil.copyfile(path, draft / path.name)
                continue
            engine = compile_graph(trt, path, sms if backend == "tensorrt-rtx" else (), folder.parent)
            (draft / path.stem).with_suffix(ENGINE_SUFFIX).write_bytes(engine)
        facts = {"backend": backend, "version": trt.__version__, "compute_capabilities": sms}
        (draft / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def engines_name(backend: str, precision: str, weights_digest: str, compute_capabilities: Sequence[str]) -> str:
    """A folder's name that tells apart all that makes engines differ."""
    version = load_module(backend).__version__
    sms = compute_capabilities or (AHEAD_OF_TIME if backend == "tensorrt-rtx" else [check_gpu(backend)])
    return f"{weights_digest}-{backend}-{version}-sm{'.'.join(sms)}-{precision}"


def compile_graph(trt: ModuleType, path: Path, compute_capabilities: Sequence[str], cache_folder: Path) -> bytes:
    """One strongly typed engine with one optimisation profile.

    Raises:
        ExportError: the parser or the builder refuses the graph.
    """
    logger = _Messages(trt)
    builder = trt.Builder(logger.logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind from version 11 on
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger.logger)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{e.node_name()}: {e.desc()}" for e in errors[:3])
        raise ExportError(f"{path.name}: {trt.__name__} {trt.__version__} does not take it: {said}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in profile_of(network).items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
        for i, sm in enumerate(compute_capabilities):
            config.set_compute_capability(_capability(trt, sm), i)
        engine = builder.build_serialized_network(network, config)
    else:
        engine = _build_timed(builder, network, config, cache_folder / TIMING_CACHE)
    if engine is None:
        raise ExportError(f"{path.name}: {trt.__name__} {trt.__version__} cannot build it: {logger.last}")
    return bytes(engine)


def _build_timed(builder: Any, network: Any, config: Any, cache: Path) -> Any:
    """Build with the times of kernels measured in earlier builds."""
    timing = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timing, ignore_mismatch=True)
    engine = builder.build_serialized_network(network, config)
    cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return engine


def profile_of(network: Any) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """Smallest, usual and largest shape of each input that has open axes: axis 0 is B, axis 1 the points'."""
    has_points = any(network.get_input(i).name == export.POINT_COORDS for i in range(network.num_inputs))
    largest = (MAX_TARGETS if has_points else MAX_IMAGES, MAX_POINTS)
    limits = ((1, 0), (1, 2), largest)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    return {
        tensor.name: tuple(  # type: ignore[misc]
            [size if size >= 0 else limit[axis] for axis, size in enumerate(tensor.shape)] for limit in limits
        )
        for tensor in inputs
        if -1 in tuple(tensor.shape)
    }


def _capability(trt: ModuleType, sm: str) -> Any:
    try:
        return getattr(trt.ComputeCapability, f"SM{sm}")
    except AttributeError as error:
        known = sorted(name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM"))
        raise ExportError(f"got SM {sm}, expected one of {', '.join(known)}") from error


class _Messages:
    """Keeps the compiler's last error, which it otherwise writes to the terminal alone."""

    def __init__(self, trt: ModuleType) -> None:
        self.last = "no reason given"
        keeper = self

        class Logger(trt.ILogger):  # type: ignore[name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    keeper.last = message

        self.logger = Logger()
