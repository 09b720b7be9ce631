"""What stands in front of all routes, the host's and ours: the request log, the gate, and no other origin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user
from starlette.middleware import Middleware

from lib.access import Role, endpoints
from lib.gate import Gate
from lib.request_log import RequestLog

if TYPE_CHECKING:
    from main import ImisApp


def install(server: FastAPI, app: ImisApp) -> None:
    """In place of MONAI Label's CORS, which lets every site read with the user's cookies. Safe to call again."""
    known = list(endpoints(server.router.routes))
    ours = [
        Middleware(RequestLog, telemetry=app.telemetry),
        Middleware(Gate, config=app.config, endpoints=lambda: known, credentials=app.credentials),
    ]
    kept = [m for m in server.user_middleware if m.cls not in (CORSMiddleware, RequestLog, Gate)]
    if settings.MONAI_LABEL_CORS_ORIGINS:
        kept.append(_cors([str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS]))
    server.user_middleware = [*ours, *kept]
    server.dependency_overrides[get_current_user] = _stock_user
    server.middleware_stack = server.build_middleware_stack()


def _cors(origins: list[str]) -> Middleware:
    return Middleware(
        CORSMiddleware, allow_origins=origins, allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )


def _stock_user(request: Request) -> User:
    """MONAI Label's own checks ask FastAPI for the user: it is the one whom the gate has let in."""
    role = request.scope.get("imis_role", Role.PUBLIC)
    names = {
        Role.ANNOTATOR: (settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR),
        Role.REVIEWER: (settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,),
        Role.ADMIN: (settings.MONAI_LABEL_AUTH_ROLE_ADMIN,),
    }
    roles = [name for least, given in names.items() if role >= least for name in given]
    if role >= Role.REVIEWER:  # what the table lets reviewers do, the host keeps for its admins
        roles.append(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)
    return User(username=request.scope.get("imis_user") or "anonymous", roles=roles)
