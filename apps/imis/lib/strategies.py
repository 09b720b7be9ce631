"""Which image next: MONAI Label's strategies, on scores that one thread makes while nobody waits for anything.

Its scoring method makes them at once, in a process of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from imis_net.errors import ImisError
from imis_net.interruption import Interrupted, interruptible_by
from imis_net.retraining.scoring import score_image
from imis_net.retraining.selection import NEED_SCORES, STRATEGIES, ImageScore, choose
from lib.infer import Engine
from lib.pictures import Place
from lib.score_store import Scored, ScoreStore

log = logging.getLogger(__name__)

TAKEN_S = 600
"""For so long an image that one annotator was given is not given to another."""
REST_S = 5.0
NUM_LEAST_SURE = 10
DESCRIPTIONS = {
    "random": "Any image that has no label yet",
    "first": "In the order of their names",
    "uncertain": "What the model is least sure of",
    "diverse": "What is least like the images labelled so far",
    "hybrid": "Unsure and unlike at once",
}


class Scorer:
    """Scores the middle slice of every image with the model that is served; begins when it is first asked."""

    def __init__(self, engine: Engine, datastore: Callable[[], Datastore], store: ScoreStore) -> None:
        self.engine, self.datastore, self.store = engine, datastore, store
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
        return {image: scored.score for image, scored in self.store.read().items()}

    def score_missing(self) -> Iterator[tuple[int, int]]:
        """Score each image that the served model has not been asked about; yields how many are done, of how many."""
        missing = self._missing()
        for done, image in enumerate(missing, start=1):
            self._score_when_idle(image)
            yield done, len(missing)

    def close(self) -> None:
        self._closed.set()
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        self.engine.is_warm.wait()
        while True:
            try:
                deque(self.score_missing(), maxlen=0)
            except Exception as error:  # a study store that is away for a moment
                log.warning("scoring failed: %s", type(error).__name__)
            if self._closed.wait(REST_S):
                return

    def _missing(self) -> list[str]:
        digest = self.engine.segmenter.weights_digest
        known = {image for image, scored in self.store.read().items() if scored.weights == digest}
        return [image for image in self.datastore().list_images() if image not in known]

    def _score_when_idle(self, image: str) -> None:
        while not self._closed.is_set():
            self._stop.clear()
            self.engine.prefetcher.wait_idle()
            segmenter = self.engine.segmenter
            try:
                with interruptible_by(self._stop):
                    score: ImageScore | None = self._score(image)
            except Interrupted:
                continue
            except (ImisError, OSError):  # an image that cannot be read is nobody's next
                score = None
            self.store.keep(image, Scored(segmenter.weights_digest, score))
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


class ScoreImages(ScoringMethod):
    """What the server does little by little while it is idle, now; ``POST /scoring/uncertainty`` starts it."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__("How unsure the served model is of each image, and what the image is like")
        self.scorer = scorer

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, object]:
        """How many images were scored now, how many are, and the least sure of those without a label."""
        done = 0
        for done, of in self.scorer.score_missing():
            print(f"scored {done} of {of}", flush=True)  # no names: this goes to the log
        scores = {image: scored.score for image, scored in self.scorer.store.read().items()}
        known = {image: score for image, score in scores.items() if score is not None}
        left = [image for image in datastore.get_unlabeled_images() if image in known]
        least_sure = sorted(left, key=lambda image: -known[image].uncertainty)[:NUM_LEAST_SURE]
        return {
            "num_scored_now": done,
            "num_scored": len(known),
            "num_unreadable": len(scores) - len(known),
            "least_sure": {image: round(known[image].uncertainty, 4) for image in least_sure},
        }


def strategies(scorer: Scorer) -> dict[str, Strategy]:
    return {name: NextImage(name, scorer) for name in STRATEGIES}


def _is_taken(info: Mapping[str, Any] | None, user: str) -> bool:
    """Whether another annotator was given it lately; MONAI Label notes who was given what."""
    served = ((info or {}).get("strategy") or {}).values()
    now = time.time()
    return any(now - s.get("ts", 0) < TAKEN_S and str(s.get("client_id") or "") != user for s in served)
