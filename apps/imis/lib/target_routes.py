"""``/imis/targets``: a target step by step, for viewers that send one click at a time and want only what changed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import BackgroundTasks, Body, HTTPException, Query, Request
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from imis_net.errors import ImageError, PromptError
from imis_net.images import write_mask_nrrd
from lib.names import checked_name
from lib.prompt_log import Event, TargetKey
from lib.targets import KEYS, Answer
from lib.work import in_pool, user_of

if TYPE_CHECKING:
    from main import ImisApp

Client = Annotated[str, Query(description="who asks, where the server knows no users")]
MAX_NAME_LENGTH = 200
_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such image"},
    409: {"description": "a newer step of the same target came before this one was begun, and answers for both"},
    422: {"description": "a prompt that cannot be used; nothing has changed"},
    429: {"description": "too many requests wait; see Retry-After"},
}


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    async def prompt(
        http: Request, image: str, target: str, params: Annotated[dict[str, Any], Body()], client_id: Client = ""
    ) -> dict[str, object]:
        """Add clicks, a box or a text, in the words of POST /infer/imis.

        ``changed`` holds for each slice the smallest box of what is different now (x0, y0, x1, y1, inclusive) and the
        mask in it as run lengths of 0 and 1 in turn, the first of 0, row after row.
        """
        unknown = sorted(set(params) - KEYS)
        if unknown:
            raise HTTPException(422, f"unknown: {unknown[0]!r:.60}, expected any of {', '.join(sorted(KEYS))}")
        return await _step(app(), http, _key(http, client_id, image, target), Event("prompt", params))

    async def clear(http: Request, image: str, target: str, client_id: Client = "") -> dict[str, object]:
        """Empty the target; a step like any other, so that it can be undone."""
        return await _step(app(), http, _key(http, client_id, image, target), Event("clear", {}))

    async def undo(http: Request, image: str, target: str, client_id: Client = "") -> dict[str, object]:
        """Take the last step back, all the way to the first."""
        return await _step(app(), http, _key(http, client_id, image, target), Event("undo", {}))

    async def redo(http: Request, image: str, target: str, client_id: Client = "") -> dict[str, object]:
        """Do again what was undone, until another prompt takes its place."""
        return await _step(app(), http, _key(http, client_id, image, target), Event("redo", {}))

    async def mask(
        http: Request, background: BackgroundTasks, image: str, target: str, client_id: Client = ""
    ) -> FileResponse:
        """The target's whole mask as a gzipped NRRD in the image's own grid, values 0 and 1."""
        key = _key(http, client_id, image, target)
        path = await in_pool(app(), lambda: _mask_file(app(), key))
        background.add_task(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="application/octet-stream", filename="mask.nrrd", background=background)

    async def names(http: Request, image: str, client_id: Client = "") -> dict[str, list[str]]:
        """The targets that this user has begun on an image."""
        key = _key(http, client_id, image, "any")
        return {"targets": await in_pool(app(), lambda: app().targets.log.targets(key.user, key.image))}

    place = "/imis/targets/{image}/{target}"
    of_targets: dict[str, Any] = {"tags": ["Targets"], "responses": _ANSWERS}
    return [
        APIRoute("/imis/targets/{image}", names, methods=["GET"], **of_targets),
        APIRoute(place, mask, methods=["GET"], response_class=FileResponse, **of_targets),
        APIRoute(place, clear, methods=["DELETE"], **of_targets),
        APIRoute(f"{place}/prompts", prompt, methods=["POST"], **of_targets),
        APIRoute(f"{place}/undo", undo, methods=["POST"], **of_targets),
        APIRoute(f"{place}/redo", redo, methods=["POST"], **of_targets),
    ]


def _key(http: Request, client_id: str, image: str, target: str) -> TargetKey:
    if not target.isprintable() or len(target) > MAX_NAME_LENGTH:
        raise HTTPException(422, f"target: expected a printable name of at most {MAX_NAME_LENGTH} characters")
    return TargetKey(user_of(http, client_id[:MAX_NAME_LENGTH]), checked_name("image", image), target)


async def _step(app: ImisApp, http: Request, key: TargetKey, event: Event) -> dict[str, object]:
    def job() -> Answer:
        try:
            return app.targets.advance(key, event, app.path_of(key.image))
        finally:
            app.targets.withdraw(key, event)

    app.targets.announce(key, event)
    try:
        answer = await in_pool(app, job, key, on_full=lambda: app.targets.withdraw(key, event))
    except (PromptError, ImageError) as error:
        raise HTTPException(422, str(error)) from error
    return _shown(answer)


def _shown(answer: Answer) -> dict[str, object]:
    shown = asdict(answer)
    shown["changed"] = [{"slice": index, **asdict(patch)} for index, patch in answer.changed.items()]
    shown["iou_predictions"] = [{"slice": index, "iou": iou} for index, iou in answer.iou_predictions.items()]
    return shown


def _mask_file(app: ImisApp, key: TargetKey) -> Path:
    try:
        mask, volume, _ = app.targets.read(key, app.path_of(key.image))
    except (PromptError, ImageError) as error:
        raise HTTPException(422, str(error)) from error
    with tempfile.NamedTemporaryFile(suffix=".nrrd", delete=False) as file:
        write_mask_nrrd(Path(file.name), mask, volume, compress_level=1)
    return Path(file.name)
