"""This project's app with two more models, of known time: ``busy`` computes for 3 s and ``wait`` waits for 1 s."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "apps" / "imis"))
sys.modules.pop("main", None)  # MONAI Label loads this file under the same name

import importlib.util

import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

_spec = importlib.util.spec_from_file_location("imis_main", Path(sys.path[0]) / "main.py")
assert _spec is not None
assert _spec.loader is not None
_main = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_main)
ImisApp = _main.ImisApp  # what MONAI Label looks for: its base is MONAILabelApp


class _Timed(InferTask):
    def __init__(self, seconds: float, is_busy: bool) -> None:
        super().__init__(InferType.OTHERS, [], dimension=3, description="a known time", config={})
        self.seconds, self.is_busy = seconds, is_busy

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, object]) -> tuple[None, dict[str, object]]:
        end = time.monotonic() + self.seconds
        weights = torch.zeros(256, 256)
        while self.is_busy and time.monotonic() < end:
            weights @ weights
        time.sleep(max(0.0, end - time.monotonic()))
        return None, {}


_models = ImisApp.init_infers
ImisApp.init_infers = lambda self: {**_models(self), "busy": _Timed(3, True), "wait": _Timed(1, False)}
