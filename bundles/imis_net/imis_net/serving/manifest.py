"""What lies in the folder of one version of a network; processes that read it do without torch, slow to import."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from imis_net.adapters.graph_runtimes import Build
from imis_net.errors import ServingError

ENCODER, TEXT, DECODER = "imis_image_encoder", "imis_text_encoder", "imis_decoder"
RELOADED = (TEXT, DECODER)
"""What is trained together and exchanged together."""
MANIFEST, WEIGHTS, GRAPHS = "manifest.json", "weights.safetensors", "graphs"
TORCH = "torch"


@dataclass(frozen=True)
class Manifest:
    """What lies in a version's folder.

    Attributes:
        name: a key of ``networks.build.BUILDERS``.
        architecture: the builder's arguments.
        feature_shapes: of the tensors that the encoder gives for an image.
        backend, precision: what runs the networks, ``torch`` or a ``graph_runtimes.Build``.
        image_size, encoder_digest, weights_digest, known_texts: as the segmenter's.
        trunk_digest: of the encoder's trunk alone (``segmenter.trunk_digest``).
    """

    name: str
    image_size: int
    feature_shapes: tuple[tuple[int, ...], ...]
    encoder_digest: str
    weights_digest: str
    known_texts: tuple[str, ...] | None
    architecture: dict[str, int] = field(default_factory=dict)
    backend: str = TORCH
    precision: str = "fp32"
    trunk_digest: str = ""

    @property
    def build(self) -> Build:
        """How its graphs are run, where ``backend`` is not torch."""
        return Build(self.backend, self.precision)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises:
        ServingError: none there, or not a whole one.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text())
            names = content.pop("known_texts")
            shapes = tuple(tuple(shape) for shape in content.pop("feature_shapes"))
            return cls(known_texts=None if names is None else tuple(names), feature_shapes=shapes, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServingError(f"{folder.parent.name}/{folder.name}: no whole {MANIFEST} ({error})") from error
