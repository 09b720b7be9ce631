"""A network as a model of Triton's Python backend, one answer per request. Importable only in a process of Triton."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from imis_net.serving import giving_way
from imis_net.serving.network_models import NetworkModel


class OneByOne:
    """What Triton asks of ``TritonPythonModel``; the inputs' names are those of config.pbtxt, optional ones included.

    Attributes:
        network: opens a version's folder.
    """

    network: Callable[[Path], NetworkModel]

    def initialize(self, args: dict[str, str]) -> None:
        self._inputs = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]
        try:
            self._model = type(self).network(Path(args["model_repository"], args["model_version"]))
        finally:
            giving_way.ready()  # it is to answer as soon as any

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = [(name, pb.get_input_tensor_by_name(request, name)) for name in self._inputs]
        try:
            outputs = self._model.run({name: tensor.as_numpy() for name, tensor in given if tensor is not None})
        except Exception as error:  # whatever it is, it ends this request and no other
            return pb.InferenceResponse(error=pb.TritonError(str(error)))
        return pb.InferenceResponse([pb.Tensor(n, np.ascontiguousarray(array)) for n, array in outputs.items()])
