"""The interactive model: hands each request to ``InteractiveModel`` on a thread, so that users do not wait in line."""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton_python_backend_utils as pb

sys.path[:0] = os.environ.get("IMIS_NET_PATH", "").split(os.pathsep)  # where the library is not installed

from imis_net.errors import ImageError, PromptError, ServingError, UnknownHandleError
from imis_net.serving.interactive import InteractiveModel
from imis_net.serving.kept_features import UNKNOWN_FEATURES
from imis_net.serving.remote_network import CurrentVersion

CODES = {PromptError: "INVALID_ARG", ImageError: "INVALID_ARG", UnknownHandleError: "NOT_FOUND"}


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        number = {key: int(value["string_value"]) for key, value in config["parameters"].items()}
        self.inputs = [tensor["name"] for tensor in config["input"]]
        current = CurrentVersion(Path(args["model_repository"]).parent, call, is_ready)
        self.model = InteractiveModel(current, number["cache_mb"] << 20, number["encoder_runs"])
        self.pool = ThreadPoolExecutor(number["threads"])
        self.room = threading.BoundedSemaphore(number["max_pending"])

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if not self.room.acquire(blocking=False):
                send_error(sender, "UNAVAILABLE", "too many requests are waiting")
                continue
            given = [(name, pb.get_input_tensor_by_name(request, name)) for name in self.inputs]
            tensors = {name: tensor.as_numpy().copy() for name, tensor in given if tensor is not None}
            self.pool.submit(self.answer, tensors, sender)

    def answer(self, tensors, sender):
        try:
            if sender.is_cancelled():  # its client has given up
                send_error(sender, "CANCELLED", "cancelled")
                return
            answer = self.model.answer(tensors)
            send(sender, pb.InferenceResponse([pb.Tensor(name, array) for name, array in answer.items()]))
        except Exception as error:  # whatever it is, it ends this request and no other
            send_error(sender, CODES.get(type(error), "INTERNAL"), str(error))
        finally:
            self.room.release()

    def finalize(self):
        self.pool.shutdown()


def call(model, version, inputs, outputs):
    """Ask another model of this server. Embeddings go through shared memory."""
    request = pb.InferenceRequest(
        model_name=model,
        model_version=version,
        requested_output_names=list(outputs),
        inputs=[pb.Tensor(name, array) for name, array in inputs.items()],
    )
    response = request.exec()
    if response.has_error():
        reason = response.error().message()
        kind = UnknownHandleError if UNKNOWN_FEATURES in reason else ServingError
        raise kind(f"{model}: {reason}")
    return [pb.get_output_tensor_by_name(response, name).as_numpy().copy() for name in outputs]


def is_ready(model, version):
    return pb.is_model_ready(model_name=model, model_version=str(version))


def send_error(sender, code, message):
    send(sender, pb.InferenceResponse(error=pb.TritonError(message, getattr(pb.TritonError, code))))


def send(sender, response):
    sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
