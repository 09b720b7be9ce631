"""The two models that viewers see, on one engine.

``imis`` (deepgrow) takes clicks, boxes and text; ``imis_text`` (segmentation) takes names. These two types are what
makes the right panels appear in both 3D Slicer and OHIF, and separate models keep OHIF from sending one panel's
prompts to the other.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from imis_net.adapters.graphs import GraphSegmenter
from imis_net.adapters.triton import TritonSegmenter
from imis_net.embedding_cache import EmbeddingCache
from imis_net.embedding_disk import EmbeddingDisk
from imis_net.images import Volume, write_mask_nrrd
from imis_net.interruption import Interrupted, make_interruptible
from imis_net.networks.build import COMPACT_CATEGORIES, COMPACT_TAUGHT_ABSENT
from imis_net.networks.encoder import ImageEncoder
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import Segmenter, TorchSegmenter
from imis_net.stepwise import StepwisePredictor
from imis_net.stopwatch import Stopwatch
from lib.pictures import Picture, PictureCache, Place
from lib.prefetch import Prefetcher
from lib.request import Request, Target, classes_request, interactive_request
from lib.telemetry import Telemetry
from lib.volumes import VolumeCache

logger = logging.getLogger(__name__)

# Options that both viewers show as a table; they send "" (Slicer) or nothing (OHIF) while the user chose nothing.
_OPTIONS = {"text": "", "slice": "", "window": ""}


class Engine:
    """What all models share: the segmenter and the caches that spare a second click the reading and the encoder."""

    def __init__(
        self,
        segmenter: Segmenter,
        cache_bytes: int,
        telemetry: Telemetry | None = None,
        disk: EmbeddingDisk | None = None,
        prefetch: int = 0,
        previous_mask: bool = True,
    ) -> None:
        """``previous_mask``: each click of a prompt builds on the mask of those before it (``imis_net.stepwise``)."""
        self.use(segmenter)
        self._steps = StepwisePredictor() if previous_mask else None
        self.telemetry = telemetry or Telemetry()
        self.is_warm = threading.Event()
        self.volumes = VolumeCache(cache_bytes // 2)
        self.pictures = PictureCache()
        self._embeddings = EmbeddingCache(cache_bytes // 2, disk)
        self.num_encoder_runs = 0
        self.prefetcher = Prefetcher(self._encode_ahead, prefetch)
        self._encoder = threading.Lock()  # one encoder run at a time bounds memory, whatever comes in

    def status(self) -> dict[str, object]:
        """Who answers, for whoever watches the server."""
        segmenter = self.segmenter
        if isinstance(segmenter, TritonSegmenter):
            return segmenter.status()
        return {"segmenter": segmenter.build.backend if isinstance(segmenter, GraphSegmenter) else "torch"}

    def use(self, segmenter: Segmenter) -> None:
        """Answer with this one from the next request on; requests that run now end with the one they began with."""
        if isinstance(segmenter, TorchSegmenter) and isinstance(segmenter.image_encoder, ImageEncoder):
            make_interruptible(segmenter.image_encoder)
        self.segmenter = segmenter

    def embed(
        self, segmenter: Segmenter, picture: Picture, is_ahead: bool = False, is_stored: bool = True
    ) -> tuple[ImageEmbedding, bool]:
        """The picture's embedding, and whether the encoder was spared.

        The key is what the encoder sees: image, slice, axis and window at once, whatever name the image goes by.
        """

        def encode() -> ImageEmbedding:
            with self._encoder:
                embedding = segmenter.encode_image(picture.image)
                self.num_encoder_runs += 1
                return embedding

        while True:
            try:
                key = f"{picture.digest}-{segmenter.encoder_digest}"
                return self._embeddings.get_or_encode(key, encode, is_stored)
            except Interrupted:
                if is_ahead:
                    raise
                # A click waited for a run that was done ahead and gave way to it: now it is the click's own.

    def predict(
        self, segmenter: Segmenter, embedding: ImageEmbedding, picture: Picture, prompts: Sequence[Prompt]
    ) -> list[Prediction]:
        """Targets of the picture that was embedded, in the prompts' order."""
        if self._steps is None:
            return segmenter.predict_batch(embedding, prompts)
        return self._steps.predict_batch(segmenter, embedding, picture.digest, prompts)

    def _encode_ahead(self, place: Place) -> None:
        self.embed(self.segmenter, place.picture(), is_ahead=True)

    def cache_counters(self) -> dict[str, float]:
        cache = self._embeddings
        return {
            "hits": cache.num_hits,
            "misses": cache.num_misses,
            "evictions": cache.num_evictions,
            "disk_hits": cache.num_disk_hits,
            "disk_rejected": cache.disk.num_rejected if cache.disk else 0,
            "encoder_runs": self.num_encoder_runs,
        }

    def cache_gauges(self) -> dict[str, float]:
        disk = self._embeddings.disk
        return {
            "bytes": self._embeddings.num_bytes,
            "volume_bytes": self.volumes.num_bytes,
            "disk_bytes": disk.num_bytes if disk else 0,
        }

    def warm_up(self) -> None:
        """Run everything once, so that the first click does not pay for what torch sets up lazily."""
        segmenter = self.segmenter
        side = segmenter.frame.side
        request = interactive_request({"foreground": [[side // 2, side // 2, 0]]}, (side, side, 1), ())
        embedding = segmenter.encode_image(np.zeros((side, side, 3), np.uint8))
        segmenter.predict(embedding, request.targets[0].prompt)
        self.is_warm.set()


class _ImisTask(InferTask):
    """One call: read -> slice -> encode (cached) -> predict -> a mask in the image's own grid."""

    def __init__(
        self,
        engine: Engine,
        infer_type: InferType,
        labels: Sequence[str] | dict[str, int],
        description: str,
        config: dict[str, object],
        min_iou: float = 0.0,
    ) -> None:
        # Dimension 3, although each mask is of one slice: at 2 Slicer sends its roi with the slice in millimetres and
        # drops the clicks of other slices, and OHIF's panel fails without a foreground click.
        super().__init__(infer_type, labels, dimension=3, description=description, config=config)
        self.engine = engine
        self.categories = tuple(labels)
        self.min_iou = min_iou

    def is_valid(self) -> bool:
        return True

    def parse(self, params: Mapping[str, object], shape: tuple[int, int, int]) -> Request:
        raise NotImplementedError

    def values(self, names: Sequence[str]) -> dict[str, int]:
        """The voxel value of each target's name."""
        raise NotImplementedError

    def __call__(self, request: Mapping[str, object]) -> tuple[str, dict[str, object]]:
        """A gzipped NRRD with a mask uint8 [I, J, K], and what there is to say about it.

        Raises:
            PromptError, ImageError: the caller's fault.
        """
        with self.engine.prefetcher.click():
            return self._answer(request)

    def _answer(self, request: Mapping[str, object]) -> tuple[str, dict[str, object]]:
        watch = Stopwatch()
        segmenter = self.engine.segmenter
        volume = self.engine.volumes.read(Path(str(request["image"])))
        watch.lap("read")
        i, j, k = volume.array.shape[:3]
        asked = self.parse(request, (i, j, k))
        answers: list[tuple[Target, Prediction]] = []
        hits: list[bool] = []
        for index in sorted({target.slice for target in asked.targets}):
            targets = [target for target in asked.targets if target.slice == index]
            predictions, is_hit = self._predict(segmenter, volume, asked, index, targets, request, watch)
            hits.append(is_hit)
            answers += [(t, p) for t, p in zip(targets, predictions, strict=True) if self._is_kept(t, p)]
        values = self.values([target.name for target, _ in answers])
        mask = _painted(volume, asked.axis, answers, values)
        path = write_mask(mask, volume)
        watch.lap("write")
        self.engine.telemetry.stages(watch.report())
        return path, {
            "label_names": values,
            "iou_prediction": max((p.iou_prediction for _, p in answers), default=0.0),
            "iou_predictions": [
                {"label": t.name, "slice": t.slice, "iou": round(p.iou_prediction, 4)} for t, p in answers
            ],
            "slice": asked.targets[-1].slice,
            "axis": asked.axis,
            "cache_hit": all(hits),
            "latencies_ms": watch.report(),
            "weights": segmenter.weights_digest,
        }

    def _predict(
        self,
        segmenter: Segmenter,
        volume: Volume,
        asked: Request,
        index: int,
        targets: Sequence[Target],
        request: Mapping[str, object],
        watch: Stopwatch,
    ) -> tuple[list[Prediction], bool]:
        place = Place(volume, asked.axis, index, asked.window)
        picture = self.engine.pictures.of(place)
        watch.lap("slice")
        is_upload = bool(request.get("is_upload"))
        embedding, is_hit = self.engine.embed(segmenter, picture, is_stored=not is_upload)
        watch.lap("encode")
        predictions = self.engine.predict(segmenter, embedding, picture, [target.prompt for target in targets])
        watch.lap("predict")
        if not is_upload:
            self.engine.prefetcher.around(place)
        _log(picture.digest, index, asked.axis, targets, is_hit, watch)
        return predictions, is_hit

    def _is_kept(self, target: Target, prediction: Prediction) -> bool:
        return not target.is_guess or (prediction.iou_prediction >= self.min_iou and bool(prediction.mask.any()))


class InteractiveTask(_ImisTask):
    """``imis``: clicks, a box, text, in any combination; values count from 1 in the request's order."""

    def __init__(self, engine: Engine, labels: Sequence[str]) -> None:
        super().__init__(
            engine,
            InferType.DEEPGROW,
            list(labels),
            "Segments what you click, box or name, on one slice at a time",
            {**_OPTIONS, "prompt": ["points", "box"]},
        )

    def parse(self, params: Mapping[str, object], shape: tuple[int, int, int]) -> Request:
        return interactive_request(params, shape, self.categories)

    def values(self, names: Sequence[str]) -> dict[str, int]:
        return {name: value for value, name in enumerate(dict.fromkeys(names), start=1)}


class TextTask(_ImisTask):
    """``imis_text``: names of targets, or whatever the model can tell to be there; values are the indices in /info/."""

    def __init__(self, engine: Engine, labels: Sequence[str], min_iou: float) -> None:
        super().__init__(
            engine,
            InferType.SEGMENTATION,
            {name: value for value, name in enumerate(labels, start=1)},
            "Segments by name; with no name, the categories that it is confident of, on the middle slice by default",
            dict(_OPTIONS),
            min_iou,
        )
        is_compact = engine.segmenter.known_texts == COMPACT_CATEGORIES
        taught_absent = [name for name in labels if name.lower() in COMPACT_TAUGHT_ABSENT] if is_compact else ()
        self.guessed = taught_absent or labels

    def parse(self, params: Mapping[str, object], shape: tuple[int, int, int]) -> Request:
        asked = classes_request(params, shape, self.categories, self.guessed)
        spelled = {name.lower(): name for name in self.categories}
        targets = tuple(replace(t, name=spelled.get(t.name.lower(), t.name)) for t in asked.targets)
        return replace(asked, targets=targets)

    def values(self, names: Sequence[str]) -> dict[str, int]:
        """Every label, since Slicer counts through the list; other names, of a model of free text, come after them."""
        values = {name: value for value, name in enumerate(self.categories, start=1)}
        for name in names:
            values.setdefault(name, len(values) + 1)
        return values


def _painted(
    volume: Volume, axis: int, answers: Sequence[tuple[Target, Prediction]], values: Mapping[str, int]
) -> np.ndarray:
    """uint8 [I, J, K], i fastest as in the file; where masks overlap the higher predicted IoU wins."""
    mask = np.zeros(volume.array.shape[:3], np.uint8, order="F")
    slices = np.moveaxis(mask, axis, -1)
    for target, prediction in sorted(answers, key=lambda answer: answer[1].iou_prediction):
        slices[..., target.slice].T[prediction.mask] = values[target.name]
    return mask


def write_mask(mask: np.ndarray, volume: Volume) -> str:
    """The path of a temporary gzipped NRRD, which whoever answers with it removes."""
    with tempfile.NamedTemporaryFile(suffix=".nrrd", delete=False) as file:
        write_mask_nrrd(Path(file.name), mask, volume, compress_level=1)
    return file.name


def _log(digest: str, index: int, axis: int, targets: Sequence[Target], is_hit: bool, watch: Stopwatch) -> None:
    """One line per slice that was prompted; no file name, no label, no text."""
    prompts = [target.prompt for target in targets]
    logger.info(
        "image=%s axis=%d slice=%d targets=%d clicks=%d boxes=%d texts=%d cache_hit=%s %s",
        digest,
        axis,
        index,
        len(targets),
        sum(p.num_clicks for p in prompts),
        sum(p.box is not None for p in prompts),
        sum(p.text is not None for p in prompts),
        is_hit,
        " ".join(f"{stage}={ms:.0f}ms" for stage, ms in watch.report().items()),
    )
