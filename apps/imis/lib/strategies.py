"""Which image next: MONAI Label's strategies on scores that one thread makes while nobody waits for anything."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from imis_net.errors import ImisError
from imis_net.interruption import Interrupted, interruptible_by
from imis_net.retraining.scoring import score_image
from imis_net.retraining.selection import NEED_SCORES, STRATEGIES, ImageScore, choose
from lib.infer import Engine
from lib.pictures import Place

log = logging.getLogger(__name__)

TAKEN_S = 600
"""For so long an image that one annotator was given is not given to another."""
REST_S = 5.0
DESCRIPTIONS = {
    "random": "Any image that has no label yet",
    "first": "In the order of their names",
    "uncertain": "What the model is least sure of",
    "diverse": "What is least like the images labelled so far",
    "hybrid": "Unsure and unlike at once",
}


class Scorer:
    """Scores the middle slice of every image with the model that is served; begins when it is first asked."""

    def __init__(self, engine: Engine, datastore: Callable[[], Datastore]) -> None:
        self.engine, self.datastore = engine, datastore
        self._scores: dict[str, tuple[str, ImageScore | None]] = {}
        self._stop = threading.Event()
        engine.prefetcher.give_way(self._stop)
        self._begun = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)

    def scores(self) -> Mapping[str, ImageScore | None]:
        """What is known so far, older models' scores included until the served one's are there."""
        with self._begun:
            if not self._thread.ident:
                self._thread.start()
        return {image: score for image, (_, score) in self._scores.copy().items()}

    def close(self) -> None:
        self._closed.set()
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        self.engine.is_warm.wait()
        while True:
            try:
                for image in self._missing():
                    self._score_when_idle(image)
            except Exception as error:  # a study store that is away for a moment
                log.warning("scoring failed: %s", type(error).__name__)
            if self._closed.wait(REST_S):
                return

    def _missing(self) -> list[str]:
        digest = self.engine.segmenter.weights_digest
        known = {image for image, (of, _) in self._scores.items() if of == digest}
        return [image for image in self.datastore().list_images() if image not in known]

    def _score_when_idle(self, image: str) -> None:
        while not self._closed.is_set():
            self._stop.clear()
            self.engine.prefetcher.wait_idle()
            segmenter = self.engine.segmenter
            try:
                with interruptible_by(self._stop):
                    self._scores[image] = segmenter.weights_digest, self._score(image)
                return
            except Interrupted:
                continue
            except (ImisError, OSError):  # an image that cannot be read is nobody's next
                self._scores[image] = segmenter.weights_digest, None
                return

    def _score(self, image: str) -> ImageScore:
        segmenter = self.engine.segmenter
        volume = self.engine.volumes.read(Path(self.datastore().get_image_uri(image)))
        middle = Place(volume, axis=2, index=volume.num_slices(2) // 2, window=None)
        embedding, _ = self.engine.embed(segmenter, middle.picture(), is_ahead=True)
        return score_image(segmenter, embedding, segmenter.known_texts or ())


class NextImage(Strategy):
    """One of ``imis_net.retraining.selection.STRATEGIES``."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        super().__init__(DESCRIPTIONS[name])
        self.name, self.scorer = name, scorer

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, object] | None:
        """The next image's id; None when every image has a label."""
        left = datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))
        if not left:
            return None
        user = str(request.get("client_id") or "")
        free = [image for image in left if not _is_taken(datastore.get_image_info(image), user)] or left
        scores = self.scorer.scores() if self.name in NEED_SCORES else {}
        labelled = {image: scores.get(image) for image in datastore.get_labeled_images()}
        chosen = choose(self.name, {i: scores.get(i) for i in free}, labelled, np.random.default_rng())
        return {"id": chosen, "num_scored": sum(score is not None for score in scores.values())}


def strategies(scorer: Scorer) -> dict[str, Strategy]:
    return {name: NextImage(name, scorer) for name in STRATEGIES}


def _is_taken(info: Mapping[str, Any] | None, user: str) -> bool:
    """Whether another annotator was given it lately; MONAI Label notes who was given what."""
    served = ((info or {}).get("strategy") or {}).values()
    now = time.time()
    return any(now - s.get("ts", 0) < TAKEN_S and str(s.get("client_id") or "") != user for s in served)
