"""From prompted slices to the volume: a model that viewers can choose, and background jobs with progress and an end.

============================================  ======================================================================
``POST   /imis/propagate?image=ID``           prompts as for ``/infer/imis``; every prompted slice is an anchor.
                                              ``anchors``: a list of such prompts, where one cannot say it (two boxes)
``GET    /imis/propagate/{job}``              state, slices done and in all, predicted IoU by slice
``GET    /imis/propagate/{job}/mask``         the mask of a job that is done, as gzipped NRRD
``DELETE /imis/propagate/{job}``              stop it, or forget it
============================================  ======================================================================
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from starlette.routing import BaseRoute

from imis_net.errors import ImageError, PromptError
from imis_net.images import Volume
from imis_net.prompts import Prompt
from imis_net.propagation import Cancelled, Propagation, propagate
from imis_net.stopwatch import Stopwatch
from lib.infer import Engine, write_mask
from lib.pictures import Picture
from lib.pool import PoolFull
from lib.request import interactive_request
from lib.work import user_of

if TYPE_CHECKING:
    from main import ImisApp

MAX_NUM_ANCHORS = 256
MAX_NUM_WAITING = 8
MAX_NUM_KEPT = 64
"""Jobs remembered, with their packed masks; the oldest that are over go first."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """Prompts by target and slice of one axis."""

    anchors: Mapping[str, Mapping[int, Prompt]]
    axis: int
    window: tuple[float, float] | None


def asked(params: Mapping[str, object], shape: tuple[int, int, int], categories: Sequence[str]) -> Asked:
    """
    Raises:
        PromptError: no prompt, one that cannot be used, or too many anchors.
    """
    given = params.get("anchors") or [{}]
    if not isinstance(given, list) or not all(isinstance(a, dict) for a in given) or len(given) > MAX_NUM_ANCHORS:
        raise PromptError(f"anchors: expected a list of at most {MAX_NUM_ANCHORS} prompts, got {str(given)[:60]}")
    common = {key: value for key, value in params.items() if key != "anchors"}
    requests = [interactive_request({**common, **anchor}, shape, categories) for anchor in given]
    if len({(r.axis, r.window) for r in requests}) != 1:
        raise PromptError("anchors: expected the same axis and window for all of them")
    anchors: dict[str, dict[int, Prompt]] = defaultdict(dict)
    for target in (target for request in requests for target in request.targets):
        anchors[target.name][target.slice] = target.prompt
    return Asked(anchors, requests[0].axis, requests[0].window)


def run(
    engine: Engine,
    volume: Volume,
    what: Asked,
    on_progress: Progress = lambda num_done, num_slices: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> tuple[np.ndarray, dict[str, object]]:
    """uint8 [I, J, K] with values from 1 in the targets' order, where a later one wins; and what there is to say.

    Raises:
        PromptError, ImageError: the caller's fault. Cancelled: as asked.
    """
    segmenter = engine.segmenter
    mask = np.zeros(volume.array.shape[:3], np.uint8, order="F")
    ious: list[dict[str, object]] = []
    num_slices = volume.num_slices(what.axis) * len(what.anchors)
    for value, (name, anchors) in enumerate(what.anchors.items(), start=1):
        before = (value - 1) * volume.num_slices(what.axis)
        found: Propagation = propagate(
            volume,
            anchors,
            segmenter,
            lambda image: engine.embed(segmenter, Picture.of(image))[0],
            what.axis,
            what.window,
            on_progress=lambda num_done, _, before=before: on_progress(before + num_done, num_slices),  # type: ignore[misc]
            is_cancelled=is_cancelled,
        )
        mask[found.mask] = value
        ious += [{"label": name, "slice": k, "iou": iou} for k, iou in found.iou_predictions.items()]
    names = {name: value for value, name in enumerate(what.anchors, start=1)}
    weights = segmenter.weights_digest
    return mask, {"label_names": names, "iou_predictions": ious, "axis": what.axis, "weights": weights}


class PropagateTask(InferTask):
    """``imis_propagate``: as ``imis``, but the answer is the target in the whole volume."""

    def __init__(self, engine: Engine, labels: Sequence[str]) -> None:
        description = "Carries what you click, box or name on some slices through the volume"
        super().__init__(
            InferType.DEEPGROW, list(labels), 3, description, config={"text": "", "axis": "", "window": ""}
        )
        self.engine = engine
        self.categories = tuple(labels)

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, object]) -> tuple[str, dict[str, object]]:
        """A gzipped NRRD in the image's own grid, and what there is to say about it.

        Raises:
            PromptError, ImageError: the caller's fault.
        """
        watch = Stopwatch()
        volume = self.engine.volumes.read(Path(str(request["image"])))
        watch.lap("read")
        mask, params = run(self.engine, volume, asked(request, _shape(volume), self.categories))
        watch.lap("propagate")
        path = write_mask(mask, volume)
        watch.lap("write")
        return path, {**params, "latencies_ms": watch.report()}


@dataclass(eq=False)
class Job:
    """One propagation in the background."""

    user: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: str = "waiting"
    num_done: int = 0
    num_slices: int = 0
    detail: str = ""
    answer: dict[str, object] = field(default_factory=dict)
    nrrd: bytes = b""
    cancel: threading.Event = field(default_factory=threading.Event)

    def progress(self, num_done: int, num_slices: int) -> None:
        self.num_done, self.num_slices = num_done, num_slices

    def shown(self) -> dict[str, object]:
        facts: dict[str, object] = {"id": self.id, "state": self.state, "done": self.num_done}
        facts |= {"slices": self.num_slices, **self.answer}
        return facts | ({"detail": self.detail} if self.detail else {})


class Jobs:
    """One at a time in a thread of its own, so that clicks, which share only the encoder, wait for a slice at most."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "propagation")

    def start(self, user: str, work: Callable[[Job], None]) -> Job:
        """
        Raises:
            PoolFull: too many wait already.
        """
        job = Job(user)
        with self._lock:
            if sum(j.state == "waiting" for j in self._jobs.values()) >= MAX_NUM_WAITING:
                raise PoolFull(10)
            self._jobs[job.id] = job
            over = [j.id for j in self._jobs.values() if j.state not in ("waiting", "running")]
            for old in over[: max(0, len(self._jobs) - MAX_NUM_KEPT)]:
                del self._jobs[old]
        self._thread.submit(_run, job, work)
        return job

    def get(self, job_id: str, user: str) -> Job:
        """
        Raises:
            HTTPException: 404 for one that is not there or another user's.
        """
        job = self._jobs.get(job_id)
        if job is None or job.user != user:
            raise HTTPException(404, f"no such job: got {job_id[:40]!r}; it may be long over")
        return job

    def drop(self, job: Job) -> None:
        job.cancel.set()
        with self._lock:
            if job.state in ("done", "failed", "cancelled"):
                self._jobs.pop(job.id, None)


def _run(job: Job, work: Callable[[Job], None]) -> None:
    job.state = "running"
    try:
        if job.cancel.is_set():
            raise Cancelled
        work(job)
        job.state = "done"
    except Cancelled:
        job.state = "cancelled"
    except (PromptError, ImageError) as error:
        job.detail, job.state = str(error), "failed"
    except Exception:
        job.detail, job.state = "the server could not do it", "failed"
        raise


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    jobs = Jobs()

    async def start(http: Request, image: str) -> JSONResponse:
        """Begin; 202 with the job."""
        params = _object(await http.json())
        job = jobs.start(user_of(http), _work(app(), image, params))
        return JSONResponse(job.shown(), 202)

    async def show(http: Request, job: str) -> dict[str, Any]:
        """How far it is."""
        return jobs.get(job, user_of(http)).shown()

    async def mask(http: Request, job: str) -> Response:
        """The mask, once the job is done."""
        found = jobs.get(job, user_of(http))
        if found.state != "done":
            raise HTTPException(409, f"no mask yet: the job is {found.state}")
        return Response(found.nrrd, media_type="application/octet-stream")

    async def stop(http: Request, job: str) -> dict[str, Any]:
        """Cancel; a job that is over is forgotten."""
        found = jobs.get(job, user_of(http))
        jobs.drop(found)
        return found.shown()

    made = [("/imis/propagate", start, "POST"), ("/imis/propagate/{job}", show, "GET")]
    made += [("/imis/propagate/{job}/mask", mask, "GET"), ("/imis/propagate/{job}", stop, "DELETE")]
    return [
        APIRoute(path, endpoint, methods=[method], tags=["Propagation"], response_model=None)
        for path, endpoint, method in made
    ]


def _work(app: ImisApp, image: str, params: Mapping[str, object]) -> Callable[[Job], None]:
    path = app.path_of(image)

    def work(job: Job) -> None:
        volume = app.engine.volumes.read(path)
        what = asked(params, _shape(volume), ())
        values, job.answer = run(app.engine, volume, what, job.progress, job.cancel.is_set)
        file = Path(write_mask(values, volume))
        job.nrrd = file.read_bytes()
        file.unlink()

    return work


def _shape(volume: Volume) -> tuple[int, int, int]:
    i, j, k = volume.array.shape[:3]
    return i, j, k


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise HTTPException(400, "body: expected a JSON object with prompts")
    return value
