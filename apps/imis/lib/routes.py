"""What the app changes in MONAI Label's HTTP interface, without touching its code.

Its own endpoints run a model on the event loop, so that one click stops the whole server; they answer bad input with
an opaque 500, read any file of the machine as an image, and write labels outside the study folder on request.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl
from uuid import uuid4

from fastapi import BackgroundTasks, Depends, FastAPI, File, Form, HTTPException, UploadFile
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import infer as stock
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.utils.others.generic import remove_file
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from imis_net.dicom_seg import Identity
from imis_net.errors import ImageError
from imis_net.images import read_volume
from lib import (
    label_routes,
    login,
    model_routes,
    ohif,
    page,
    propagate,
    stock_routes,
    target_routes,
    telemetry,
    train_routes,
)
from lib.dicom_labels import as_dicom_seg, series_of
from lib.gate import check_plain
from lib.names import checked_name
from lib.params import json_object
from lib.pool import PoolFull, Superseded
from lib.uploads import Refused, Unreachable
from lib.work import in_pool, tidied, user_of

if TYPE_CHECKING:
    from main import ImisApp

MODULES: Sequence[ModuleType] = (
    telemetry,
    login,
    target_routes,
    label_routes,
    ohif,
    page,
    propagate,
    model_routes,
    train_routes,
    stock_routes,  # last: whatever is ours goes before what is the host's
)
"""Each has ``routes(app) -> list[BaseRoute]``, where ``app()`` is the running app; one line per feature."""

_NAMES = {"image", "id", "label", "tag", "session_id"}
"""Query parameters that MONAI Label joins to a folder's path."""


def install(server: FastAPI, app: Callable[[], ImisApp]) -> None:
    """Put our routes before the stock ones and make bad input a 4xx. Safe to call again, as on a reload."""
    server.router.routes[:] = [r for r in server.router.routes if not getattr(r, "is_imis", False)]
    user = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
    infer = APIRoute("/infer/{model}", _infer_endpoint(app), methods=["POST"], tags=["Infer"], dependencies=[user])
    ours = [infer, *(route for module in MODULES for route in module.routes(app))]
    for route in ours:
        route.is_imis = True
    server.router.routes[:0] = [PathGuard(), *ours]
    server.add_exception_handler(MONAILabelException, _on_monailabel_error)
    server.add_exception_handler(json.JSONDecodeError, _on_json_error)
    server.add_exception_handler(PoolFull, _on_pool_full)
    server.add_exception_handler(Superseded, _on_superseded)
    for failed in (Refused, Unreachable):
        server.add_exception_handler(failed, _on_pacs_failed)
    server.middleware_stack = server.build_middleware_stack()  # handlers are read when it is built


class PathGuard(BaseRoute):
    """Answers 422 in place of every endpoint when a name in the query is a path, before any body is read."""

    is_imis = True

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http":
            if ".." in scope["path"].replace("\\", "/").split("/") or "\0" in scope["path"]:
                return Match.FULL, {"imis_detail": "path: expected no steps upwards"}
            for key, value in parse_qsl(scope["query_string"].decode("latin-1")):
                if key in _NAMES:
                    try:
                        checked_name(key, value)
                    except HTTPException as error:
                        return Match.FULL, {"imis_detail": error.detail}
        return Match.NONE, {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"detail": scope["imis_detail"]}, 422)(scope, receive, send)


def _infer_endpoint(app: Callable[[], ImisApp]) -> Callable[..., Coroutine[object, object, object]]:
    async def infer(
        http: HttpRequest,
        background_tasks: BackgroundTasks,
        model: str,
        image: str = "",
        session_id: str = "",
        params: Annotated[str, Form()] = "{}",
        file: Annotated[UploadFile | None, File()] = None,
        output: stock.ResultType | None = None,
    ) -> object:
        """Segment.

        409: a newer request of the same user for the same image and label came before this one was begun.
        429: too many requests wait; ``Retry-After`` says for how many seconds to stay away.
        """
        request = json_object(params)
        check_plain(request)
        user = user_of(http, request.get("client_id"))

        request["client_id"] = user

        def job() -> object:
            if output == stock.ResultType.dicom_seg:
                return _dicom_seg(app(), {**request, "model": model, "image": image})
            # After the caller's keys, so that none of them can choose a file. A Path is one that this server wrote.
            request["model"], request["session_id"] = model, session_id
            with tidied(background_tasks):
                request["image"] = _image(app(), image, session_id, file, background_tasks)
                return stock.send_response(app().datastore(), app().infer(request), output, background_tasks)

        # Only a user who is told from others can be taken for the one who clicked before.
        key = (user, model, image, session_id, str(request.get("label"))) if user else None
        return await in_pool(app(), job, key)

    return infer


def _image(
    app: ImisApp, image: str, session_id: str, file: UploadFile | None, background_tasks: BackgroundTasks
) -> str | Path:
    if session_id:
        session = app.sessions().get_session(checked_name("session_id", session_id)) if app.sessions() else None
        if session is None:
            raise HTTPException(404, f"session_id: no session {session_id!r}; it may have expired")
        return Path(session.image)
    if file is not None:
        return _uploaded(file, background_tasks)
    if not image:
        raise HTTPException(422, "no image: expected an image id, a session_id or a file")
    return image


def _uploaded(file: UploadFile, background_tasks: BackgroundTasks) -> Path:
    """The upload as a file with its own extension, which tells the format; removed after the answer."""
    suffix = "".join(Path(file.filename or "").suffixes[-2:])[-16:]
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as copy:
        shutil.copyfileobj(file.file, copy)
    background_tasks.add_task(remove_file, copy.name)
    return Path(copy.name)


def _dicom_seg(app: ImisApp, request: dict[str, Any]) -> Response:
    """A model's answer as DICOM SEG, named by the model; ``label_info`` may add colours and codes."""
    result = app.infer(request)
    mask, path = Path(str(result["file"])), app.path_of(request["image"])
    facts = {"params": result["params"], "label_info": request.get("label_info")}
    series = series_of(app.datastore(), request["image"], path)
    this = Identity(uuid4().hex, datetime.now())
    try:
        content = as_dicom_seg(read_volume(mask).array, facts, this, series, app.engine.volumes.read(path))
    except ImageError as error:
        raise HTTPException(422, f"output dicom_seg: {error}") from error
    finally:
        mask.unlink(missing_ok=True)
    return Response(content, media_type="application/dicom")


def _on_monailabel_error(request: HttpRequest, error: Exception) -> JSONResponse:
    """The stock server's own findings, such as an unknown image or strategy: the caller's, with their words."""
    assert isinstance(error, MONAILabelException)
    is_broken = error.error in (MONAILabelError.SERVER_ERROR, MONAILabelError.UNKNOWN_ERROR)
    return JSONResponse({"detail": error.msg}, 500 if is_broken else 404)


def _on_pool_full(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, PoolFull)
    return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(error.retry_after_s)})


def _on_superseded(request: HttpRequest, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error), "code": "superseded"}, 409)


def _on_pacs_failed(request: HttpRequest, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503)


def _on_json_error(request: HttpRequest, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": f"expected JSON: {error}"}, 400)
