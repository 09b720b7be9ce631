"""One JSON line per request, with an id that the answer bears too. No path, query, name, text or address in it.

A path may hold a patient's name (MONAI Label's image ids are file names), so a line tells the route's template. What
an endpoint raised is told by type and place alone: messages quote what they were given.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import time
import traceback
import uuid
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from lib.telemetry import Telemetry

logger = logging.getLogger("imis.requests")
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


def log_to_stderr() -> None:
    """Lines of their own, not in MONAI Label's format, so that a log collector can parse them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class RequestLog:
    """Outermost of our middlewares. ``scope["imis"]`` carries what the inner ones find out: route and role."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, start = uuid.uuid4().hex, time.perf_counter()
        found = scope["imis"] = {"route": "none", "role": "none"}
        REQUEST_ID.set(request_id)
        status, num_bytes, error = 0, 0, None

        async def watched(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as raised:
            error = raised
            if not status:
                detail = f"the server failed; its log says more under request {request_id}"
                await JSONResponse({"detail": detail}, 500)(scope, receive, watched)
        seconds = time.perf_counter() - start
        self.telemetry.answered(scope["method"], found["route"], status, seconds)
        _write(request_id, scope["method"], found, status, num_bytes, seconds, error)


def _write(
    request_id: str,
    method: str,
    found: dict[str, str],
    status: int,
    num_bytes: int,
    seconds: float,
    error: Exception | None,
) -> None:
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request": request_id,
        "method": method[:7],
        **found,
        "status": status,
        "bytes": num_bytes,
        "ms": round(1000 * seconds, 1),
    }
    if error is not None:
        line["error"] = type(error).__name__
        line["at"] = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-6:]]
    logger.info(json.dumps(line))
