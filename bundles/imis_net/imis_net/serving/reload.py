"""New weights for a running Triton: clients notice nothing but the better masks, and no image is encoded again."""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from imis_net.errors import ServingError
from imis_net.serving.repository import RELOADED, Manifest, publish, retire, withdraw


def exchange(url: str, repository: Path, manifest: Manifest, weights: Path, graphs: Path | None = None) -> int:
    """Publish, load, and drop what is too old; the new version's number.

    Raises:
        ServingError: weights of another encoder, or a version that Triton does not load: then the old one stays.
    """

    version = publish(repository, manifest, weights, graphs)
    try:
        with InferenceServerClient(url) as client:
            for model in RELOADED:  # one after the other, since users need the cores
                client.load_model(model)  # which runs it once
    except InferenceServerException as error:
        withdraw(repository, version)
        raise ServingError(f"version {version} was withdrawn: {error.message()}") from error
    retire(repository)
    return version
