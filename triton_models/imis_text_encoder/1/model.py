"""The text encoder."""

import os
import sys

sys.path[:0] = os.environ.get("IMIS_NET_PATH", "").split(os.pathsep)  # where the library is not installed

from imis_net.serving.network_models import TextModel
from imis_net.serving.python_backend import OneByOne


class TritonPythonModel(OneByOne):
    network = TextModel
