"""Log-in for what cannot send a header: browsers by a cookie, 3D Slicer by user name and token as the password."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import Form, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from lib.gate import COOKIE
from lib.identity import BadToken, Identity, TokenFile

if TYPE_CHECKING:
    from main import ImisApp

_PAGE = """<!doctype html><title>IMIS-Net</title><form method=post>
<label>Token <input name=token type=password autofocus autocomplete=off></label> <button>Log in</button></form>"""


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    async def page() -> HTMLResponse:
        """A form for the token."""
        return HTMLResponse(_PAGE)

    async def log_in(request: Request, token: Annotated[str, Form()] = "") -> JSONResponse:
        """Keep the token in a cookie that no script can read and no other site can send."""
        identity = await _identified(app(), token)
        answer = JSONResponse({"role": identity.role.name.lower()})
        is_https = request.url.scheme == "https"
        answer.set_cookie(COOKIE, token, max_age=12 * 3600, httponly=True, samesite="strict", secure=is_https)
        return answer

    async def is_enabled() -> dict[str, object]:
        """What Slicer asks before it shows its log-in window."""
        return {"enabled": app().credentials is not None, "client_id": "", "realm": ""}

    async def slicer_token(password: Annotated[str, Form()] = "") -> dict[str, str]:
        """Slicer's user name and password, the latter being the token; the same in exchange."""
        await _identified(app(), password)
        return {"access_token": password, "token_type": "bearer"}

    async def whose(request: Request) -> dict[str, object]:
        """The user that the token belongs to."""
        name, role = request.scope["imis_user"], request.scope["imis_role"]
        return {"username": name, "roles": [role.name.lower()]}

    ours: list[BaseRoute] = [
        APIRoute("/imis/login", page, methods=["GET"], tags=["Log-in"], response_class=HTMLResponse),
        APIRoute("/imis/login", log_in, methods=["POST"], tags=["Log-in"], response_model=None),
    ]
    if isinstance(getattr(app(), "credentials", None), TokenFile):
        ours += [
            APIRoute("/auth/", is_enabled, methods=["GET"], tags=["Log-in"]),
            APIRoute("/auth/token", slicer_token, methods=["POST"], tags=["Log-in"]),
            APIRoute("/auth/token/valid", whose, methods=["GET"], tags=["Log-in"]),
        ]
    return ours


async def _identified(app: ImisApp, token: str) -> Identity:
    if app.credentials is None:
        raise HTTPException(409, "nobody needs to log in here: start the server with --conf auth tokens or oidc")
    try:
        return await to_thread.run_sync(app.credentials.identify, token)
    except BadToken as error:
        raise HTTPException(401, str(error)) from error
