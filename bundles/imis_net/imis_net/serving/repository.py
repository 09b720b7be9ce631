"""The Triton model repository on disk: built once, then a folder per new set of weights, each appearing whole.

    imis_interactive/1/       what clients call; it calls the others
    imis_image_encoder/1/     the encoder, whose digest names every embedding
    imis_text_encoder/N/      what is trained together and exchanged together:
    imis_decoder/N/           prompt encoder and mask decoder

Beside each network lies ``manifest.json``: what it is, how it is run, and the digests that tell which parts belong
together; then its weights, or its graphs or engines.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from imis_net.adapters.graph_runtimes import DECODER as DECODER_GRAPHS
from imis_net.adapters.graph_runtimes import NECK, TEXT_ENCODER, TRUNK, Build
from imis_net.adapters.tensorrt import FACTS
from imis_net.errors import ServingError
from imis_net.segmenter import TorchSegmenter, trunk_digest
from imis_net.serving.manifest import DECODER, ENCODER, GRAPHS, MANIFEST, RELOADED, TEXT, WEIGHTS, Manifest
from imis_net.serving.wire import MODEL as INTERACTIVE

MODELS = (ENCODER, *RELOADED, INTERACTIVE)
"""In the order of loading: what is called before what calls it."""
_GRAPHS_OF = {ENCODER: (TRUNK, NECK), TEXT: (TEXT_ENCODER,), DECODER: (DECODER_GRAPHS,)}
NUM_KEPT = 2
"""Versions that stay loaded, as each config.pbtxt says: the one in use, and the one to go back to."""


def describe(segmenter: TorchSegmenter, architecture: dict[str, int], build: Build | None = None) -> Manifest:
    """``build``: how its graphs are run; None is torch."""
    blank = np.zeros((segmenter.frame.side, segmenter.frame.side, 3), np.uint8)
    return Manifest(
        name=segmenter.network.name,
        image_size=segmenter.frame.side,
        feature_shapes=tuple(tuple(feature.shape) for feature in segmenter.encode_image(blank).features),
        encoder_digest=segmenter.encoder_digest,
        weights_digest=segmenter.weights_digest,
        known_texts=segmenter.known_texts,
        architecture=architecture,
        trunk_digest=trunk_digest(segmenter.network),
        **({} if build is None else asdict(build)),
    )


def build(repository: Path, templates: Path, manifest: Manifest, weights: Path, graphs: Path | None = None) -> None:
    """A new repository, in place of an old one, from the committed models and one set of weights.

    Args:
        graphs: folder of the graphs or engines that the manifest's build runs; None for torch.
    """
    draft = repository.with_name(f".{repository.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(templates, draft, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    try:
        for model in (ENCODER, *RELOADED):
            _fill(draft / model / "1", manifest, weights, graphs)
        shutil.rmtree(repository, ignore_errors=True)
        draft.rename(repository)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish(repository: Path, manifest: Manifest, weights: Path, graphs: Path | None = None) -> int:
    """Add a version of what is trained; nothing changes for clients until Triton is asked to load it.

    Raises:
        ServingError: weights of another encoder or frame, which need another repository.
    """
    encoder = Manifest.read(repository / ENCODER / "1")
    for key in ("name", "image_size", "encoder_digest"):
        expected, got = getattr(encoder, key), getattr(manifest, key)
        if got != expected:
            raise ServingError(f"not for this repository: {key} {got}, expected {expected}; build another one")
    version = max(versions(repository)) + 1
    for model in RELOADED:
        folder = repository / model
        draft = folder / f".{version}.{os.getpid()}"
        shutil.copytree(folder / str(version - 1), draft, ignore=shutil.ignore_patterns("__pycache__", GRAPHS, WEIGHTS))
        _fill(draft, manifest, weights, graphs)
        draft.rename(folder / str(version))
    return version


def withdraw(repository: Path, version: int) -> None:
    """Remove a version; the one before it answers from now on, where Triton has it loaded."""
    for model in reversed(RELOADED):
        shutil.rmtree(repository / model / str(version), ignore_errors=True)


def retire(repository: Path) -> None:
    """Remove the versions that Triton does not keep loaded any more."""
    for version in sorted(versions(repository))[:-NUM_KEPT]:
        withdraw(repository, version)


def versions(repository: Path) -> list[int]:
    """Numbers of the versions that are there whole, newest first."""
    found = [_version_numbers(repository / model) for model in RELOADED]
    return sorted(set.intersection(*found), reverse=True)


def _version_numbers(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()} if folder.is_dir() else set()


def _fill(folder: Path, manifest: Manifest, weights: Path, graphs: Path | None) -> None:
    model = folder.parent.name
    if graphs is None:
        shutil.copyfile(weights, folder / WEIGHTS)
    else:
        (folder / GRAPHS).mkdir()
        for path in sorted(graphs.iterdir()):
            if path.stem.startswith(_GRAPHS_OF[model]) or path.name == FACTS:
                shutil.copyfile(path, folder / GRAPHS / path.name)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
