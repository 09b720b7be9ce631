"""MONAI Label's own endpoints, moved from the event loop to threads.

They are coroutines that never wait for anything: reading a study, converting DICOM or asking a DICOMweb server stops
the whole server while it lasts. The same functions are put in front of them as plain ones, which FastAPI runs in its
thread pool.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from anyio import to_thread
from fastapi import BackgroundTasks, HTTPException, Request, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.utils.others.generic import get_basename
from starlette.datastructures import UploadFile
from starlette.routing import BaseRoute

from lib.names import checked_name
from lib.work import tidied

_MODULES = (info, model, batch_infer, train, activelearning, scoring, datastore, logs, ohif, session)
_OURS_ALONE = (b"authorization", b"cookie", b"host", b"content-length", b"origin", b"referer")
"""Headers that are no business of the DICOMweb server behind the proxy."""


def routes(app: Callable[[], object]) -> list[BaseRoute]:
    return [*_threaded(), *_proxies(), *_no_wsi()]


def _threaded() -> Iterator[BaseRoute]:
    for module in _MODULES:
        for route in module.router.routes:
            yield APIRoute(
                route.path,
                in_thread(route.endpoint),
                methods=route.methods,
                response_model=None,
                response_class=route.response_class,
                include_in_schema=False,  # the stock route describes itself
            )


def in_thread(endpoint: Callable[..., Coroutine[Any, Any, object]]) -> Callable[..., object]:
    """A plain function with the coroutine's signature; what is plain already stays as it is."""
    if not inspect.iscoroutinefunction(endpoint):
        return endpoint

    def plain(*args: object, **kwargs: object) -> object:
        _check_uploads(kwargs.values())
        tasks = next((value for value in kwargs.values() if isinstance(value, BackgroundTasks)), None)
        with tidied(tasks):
            return _driven(endpoint(*args, **kwargs))

    functools.update_wrapper(plain, endpoint)
    delattr(plain, "__wrapped__")  # or FastAPI would find the coroutine function again
    plain.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
    return plain


def _check_uploads(values: Iterable[object]) -> None:
    """The name of an uploaded file becomes a file's here, some before the call knows how to remove it again."""
    for value in values:
        for upload in value if isinstance(value, list) else [value]:
            if isinstance(upload, UploadFile) and upload.filename:
                checked_name("file name", get_basename(upload.filename))


def _driven(coroutine: Coroutine[Any, Any, object]) -> object:
    """The result of a coroutine that never waits.

    Raises:
        RuntimeError: it does wait, so that it belongs on the event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError("expected an endpoint that does not wait for the event loop")


def _no_wsi() -> Iterator[BaseRoute]:
    async def refuse(model: str) -> None:
        """Whole-slide images are another kind of image than these models read."""
        raise HTTPException(404, f"no model for whole-slide images: got {model[:60]!r}")

    for path in ("/infer/wsi/{model}", "/infer/wsi_v2/{model}"):
        yield APIRoute(path, refuse, methods=["POST"], include_in_schema=False)


def _proxies() -> Iterator[BaseRoute]:
    """The DICOMweb proxy, without the caller's credentials in what it forwards."""
    for operation in ("wado", "qido", "stow", ""):
        path = f"/proxy/dicom/{operation}/{{path:path}}" if operation else "/proxy/dicom/{path:path}"
        yield APIRoute(path, _proxy(operation), methods=["GET", "POST"], include_in_schema=False)


def _proxy(operation: str) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def forward(request: Request, path: str) -> Response:
        if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
            raise HTTPException(404, "no DICOMweb server here: the studies are a folder")
        body = await request.body()
        kept = [(key, value) for key, value in request.scope["headers"] if key not in _OURS_ALONE]
        inner = Request({**request.scope, "headers": kept})
        inner._body = body  # what Request.body() keeps; the stock proxy asks for it again
        return await to_thread.run_sync(lambda: _driven(proxy.proxy_dicom(inner, operation, path)))  # type: ignore[arg-type, return-value]

    return forward
