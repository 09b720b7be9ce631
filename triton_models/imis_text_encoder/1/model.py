"""The text encoder."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

sys.path[:0] = os.environ.get("IMIS_NET_PATH", "").split(os.pathsep)  # where the library is not installed

from imis_net.errors import PromptError
from imis_net.serving.network_models import TextModel
from imis_net.serving.tensors import PROMPT_ERROR


class TritonPythonModel:
    def initialize(self, args):
        self.inputs = [tensor["name"] for tensor in json.loads(args["model_config"])["input"]]
        self.model = TextModel(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = [(name, pb.get_input_tensor_by_name(request, name)) for name in self.inputs]
        try:
            outputs = self.model.run({name: tensor.as_numpy() for name, tensor in given if tensor is not None})
        except PromptError as error:
            return pb.InferenceResponse(error=pb.TritonError(f"{PROMPT_ERROR}{error}", pb.TritonError.INVALID_ARG))
        except Exception as error:  # whatever it is, it ends this request and no other
            return pb.InferenceResponse(error=pb.TritonError(str(error)))
        return pb.InferenceResponse([pb.Tensor(n, np.ascontiguousarray(array)) for n, array in outputs.items()])
