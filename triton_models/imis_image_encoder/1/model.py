"""The image encoder: the requests of one dynamic batch go through the network together."""

import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb

sys.path[:0] = os.environ.get("IMIS_NET_PATH", "").split(os.pathsep)  # where the library is not installed

from imis_net.serving.network_models import EncoderModel
from imis_net.serving.tensors import IMAGES


class TritonPythonModel:
    def initialize(self, args):
        self.model = EncoderModel(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests):
        images = [pb.get_input_tensor_by_name(request, IMAGES).as_numpy() for request in requests]
        wanted = [request.requested_output_names() for request in requests]
        try:
            outputs = self.model.run({IMAGES: np.concatenate(images)}, set().union(*wanted))
        except Exception as error:
            return [pb.InferenceResponse(error=pb.TritonError(str(error))) for _ in requests]
        ends = np.cumsum([len(image) for image in images])[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [
            pb.InferenceResponse([pb.Tensor(n, np.ascontiguousarray(parts[n][i])) for n in names if n in parts])
            for i, names in enumerate(wanted)
        ]
