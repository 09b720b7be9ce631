"""The version that is served: chosen at the start, followed while the server runs, without a failed request.

Whatever process publishes or rolls back, every server on these studies sees the registry's one small file change.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path

from imis_net.errors import ImisError
from imis_net.retraining.cycle import adopt
from imis_net.retraining.registry import ModelRegistry
from imis_net.segmenter import TorchSegmenter, weights_path
from lib.config import Config
from lib.infer import Engine
from lib.segmenters import local_segmenter

log = logging.getLogger(__name__)

POLL_S = 1.0
MAX_NUM_LOADED = 3
"""Versions kept in memory, so that rolling back waits for no file."""


def served_weights(config: Config, root: Path) -> Path:
    """The weights to start with: the published version, else the deployment's own.

    Raises:
        CheckpointError: a damaged registry.
    """
    base = weights_path(config.model, config.weights)
    if config.segmenter == "triton" or not (root / "registry" / "current.json").is_file():
        return base
    registry = ModelRegistry(root / "registry")
    return registry.weights(adopt(registry, base))


class Publication:
    """Follows ``registry/current.json`` and gives the engine what it names."""

    def __init__(self, config: Config, root: Path, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.registry, self.graphs = ModelRegistry(root / "registry"), root.parent / "graphs"
        self.error = ""
        served = self.registry.current()
        self.digest = served.digest if served else ""
        self._loaded: OrderedDict[str, TorchSegmenter] = OrderedDict()
        if self.digest and isinstance(engine.segmenter, TorchSegmenter):
            self._loaded[self.digest] = engine.segmenter
        self._lock = threading.Lock()
        self._refused = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="publication", daemon=True)

    def watch(self) -> None:
        """In the background, for as long as the server runs."""
        self._thread.start()

    def follow(self) -> None:
        """Serve what the registry says, from the next request on.

        Raises:
            ImisError: it cannot be loaded; what was served stays.
        """
        with self._lock:
            served = self.registry.current()
            if served is None:
                return
            if served.digest == self.digest:
                self.error = self._refused = ""
                return
            self._refused = served.digest
            if self.config.segmenter == "triton":
                self.error = self._to_give_it_to_triton(self.registry.weights(served.digest))
                return
            self.engine.use(self._segmenter(served.digest))
            self.digest, self.error, self._refused = served.digest, "", ""

    def rollback(self, reason: str) -> str:
        """Serve what was served before; its digest.

        Raises:
            CheckpointError: there is nothing before it.
        """
        self.registry.rollback(reason)
        self.follow()
        return self.digest

    def _to_give_it_to_triton(self, weights: Path) -> str:
        """A running Triton takes a decoder for the encoder that it has, never another encoder."""
        if local_segmenter(self.config, weights, self.graphs).encoder_digest == self.engine.segmenter.encoder_digest:
            return f"give it to Triton: scripts/reload_triton.py --weights {weights}"
        return (
            f"its image encoder is another than Triton's: make a repository of it with scripts/build_triton.py "
            f"--weights {weights}, and restart Triton on that and this server with --conf weights {weights}"
        )

    def _segmenter(self, digest: str) -> TorchSegmenter:
        if digest not in self._loaded:
            path = self.registry.weights(digest)
            self._loaded[digest] = local_segmenter(self.config, path, self.graphs)
        self._loaded.move_to_end(digest)
        while len(self._loaded) > MAX_NUM_LOADED:
            self._loaded.popitem(last=False)
        return self._loaded[digest]

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                served = self.registry.current()
                if served is not None and served.digest != self._refused:
                    self.follow()
            except (ImisError, OSError) as error:  # told once, not tried again; the model that serves stays
                if str(error) != self.error:
                    log.warning("a published version cannot be served: %s", error)
                self.error = str(error)

    def close(self) -> None:
        self._closed.set()
        if self._thread.ident:
            self._thread.join()
