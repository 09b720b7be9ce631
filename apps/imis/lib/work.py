"""From a route to a worker and back: the event loop only waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from fastapi import BackgroundTasks, Request

from lib.pool import PoolFull

if TYPE_CHECKING:
    from main import ImisApp

T = TypeVar("T")


async def in_pool(
    app: ImisApp, job: Callable[[], T], key: Hashable | None = None, on_full: Callable[[], object] = lambda: None
) -> T:
    """The job's answer, computed by a worker.

    Raises:
        PoolFull: answered 429; Superseded: answered 409; and what the job raises.
    """
    try:
        future = app.pool.submit(job, key)
    except PoolFull:
        on_full()
        raise
    return await asyncio.wrap_future(future)


def user_of(request: Request, client_id: object = "") -> str:
    """Who asks: whom the credentials name; without any, what the viewer calls its user."""
    return request.scope.get("imis_user") or str(client_id or "")


@contextmanager
def tidied(tasks: BackgroundTasks | None) -> Iterator[None]:
    """Does after an error what was left for after the answer, as removing an upload: FastAPI forgets it then."""
    try:
        yield
    except BaseException:
        for task in tasks.tasks if tasks else ():
            task.func(*task.args, **task.kwargs)
        raise
