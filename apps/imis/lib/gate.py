"""Before any endpoint: who calls, from where, whether they may, and nothing in the body that could be evaluated.

Without credentials set up, only this computer is let in, by its own name: a web page that somebody else wrote runs in
a browser of this computer too, and reaches the loopback address.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from anyio import to_thread
from monailabel.config import settings
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.access import Endpoint, Role, path_of, role_needed
from lib.config import Config
from lib.identity import BadToken, Credentials, Identity, OpenIdConnect, TokenFile

COOKIE = "imis_token"
MAX_JSON_BYTES = 4 << 20
MAX_BODY_BYTES = 4 << 30
MAX_DEPTH = 32
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_THIS_COMPUTER = ("localhost", "127.0.0.1", "::1")
_EXPRESSION_MARKS = ("$", "@", "%")
"""How MONAI's configuration parser knows a string that it evaluates."""

NOT_ALONE = (
    "refusing to listen on {host}: anybody on the network could read and change the studies. Either --host 127.0.0.1, "
    "or --conf auth tokens (or oidc), or, to let anybody in all the same, --conf let_anybody_in yes"
)


def credentials_of(config: Config) -> Credentials | None:
    """What the deployment chose; MONAI Label's own switch for OpenID Connect counts as well."""
    if config.auth == "tokens" and config.tokens_file:
        return TokenFile(config.tokens_file)
    if config.auth == "oidc":
        return OpenIdConnect(config.oidc_issuer, config.oidc_audience)
    if settings.MONAI_LABEL_AUTH_ENABLE:
        return OpenIdConnect(settings.MONAI_LABEL_AUTH_REALM_URI.rstrip("/"), settings.MONAI_LABEL_AUTH_CLIENT_ID)
    return None


def check_binding(config: Config, argv: Sequence[str]) -> None:
    """Stop a server that would listen to others and ask nobody who they are.

    Raises:
        ValueError: says what to do instead.
    """
    host = _host_in(argv)
    if host and not is_loopback(host) and credentials_of(config) is None and not config.let_anybody_in:
        raise ValueError(NOT_ALONE.format(host=host))


def _host_in(argv: Sequence[str]) -> str | None:
    """The host of a ``monailabel start_server`` command, by its own parser; None where it is another command."""
    from monailabel.main import Main

    if "start_server" not in argv:
        return None
    try:
        known, _ = Main().args_parser().parse_known_args(argv[1:])
    except SystemExit:
        return None
    return known.host


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class Gate:
    """ASGI middleware, inside the request log."""

    app: ASGIApp
    config: Config
    endpoints: Callable[[], Sequence[Endpoint]]
    credentials: Credentials | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_caller(scope)
            await self._check_role(scope)
            receive = await checked_body(scope, receive)
        except HTTPException as error:
            response = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check_caller(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _hostname(f"//{headers.get('host', '')}")
        is_alone = self.credentials is None and not self.config.let_anybody_in
        if is_alone and not (_is_local(scope.get("server")) and _is_local(scope.get("client"))):
            raise HTTPException(403, NOT_ALONE.format(host="this address"))
        if is_alone and host not in (*_THIS_COMPUTER, *self.config.hosts):
            raise HTTPException(403, f"host: got {host!r:.60}, expected localhost or one of --conf hosts")
        origin = headers.get("origin")
        if origin and scope["method"] not in _SAFE_METHODS and not self._is_ours(origin, headers.get("host", "")):
            raise HTTPException(403, "origin: a page of another site may not change anything here")

    def _is_ours(self, origin: str, host: str) -> bool:
        allowed = [str(o).rstrip("/") for o in settings.MONAI_LABEL_CORS_ORIGINS]
        return urlsplit(origin).netloc == host or origin in allowed

    async def _check_role(self, scope: Scope) -> None:
        path, method = path_of(scope), scope["method"]
        endpoint = next((e for e in self.endpoints() if e.takes(method, path)), None)
        if endpoint is None:
            return  # nothing is there, and the router says so
        needed = role_needed(endpoint.template, method)
        identity = await self._identity(scope, needed)
        scope["imis_user"], scope["imis_role"] = identity.name, identity.role
        scope.setdefault("imis", {}).update(route=endpoint.template, role=identity.role.name.lower())
        if identity.role < needed:
            raise HTTPException(403, f"this needs the role {needed.name.lower()}, not {identity.role.name.lower()}")

    async def _identity(self, scope: Scope, needed: Role) -> Identity:
        if self.credentials is None:
            return Identity("", Role.REVIEWER)  # the server itself is its operator's, who has the command line
        token = _token(Headers(scope=scope))
        if needed == Role.PUBLIC and not token:
            return Identity("", Role.PUBLIC)
        try:
            if not token:
                raise BadToken("no token: expected Authorization: Bearer, or a log-in at /imis/login")
            return await to_thread.run_sync(self.credentials.identify, token)
        except BadToken as error:
            if needed == Role.PUBLIC:
                return Identity("", Role.PUBLIC)
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from error


def _hostname(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _is_local(address: Sequence[object] | None) -> bool:
    """A socket's end; a Unix socket has no host."""
    return address is None or address[1] is None or is_loopback(str(address[0]))


def _token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


async def checked_body(scope: Scope, receive: Receive) -> Receive:
    """``receive`` with the body's size bounded; a JSON body is read here and now, and refused if it is hostile.

    Raises:
        HTTPException: 413 too large, 400 not JSON or nested too deeply, 422 with something to evaluate in it.
    """
    headers = Headers(scope=scope)
    is_json = "json" in headers.get("content-type", "").lower()
    limit = MAX_JSON_BYTES if is_json else MAX_BODY_BYTES
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > limit:
        raise HTTPException(413, f"body: got {length[:20]} bytes, at most {limit} are read")
    if not is_json or scope["method"] in ("GET", "HEAD"):
        return _bounded(receive, limit)
    body = await _read(_bounded(receive, limit))
    check_plain(parsed(body))
    return _replayed(body, receive)


def _bounded(receive: Receive, limit: int) -> Receive:
    num_bytes = 0

    async def bounded() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise HTTPException(413, f"body: at most {limit} bytes are read")
        return message

    return bounded


async def _read(receive: Receive) -> bytes:
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the connection closed before the body was complete")
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_sent = False

    async def replay() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def parsed(text: bytes | str) -> object:
    """JSON; nothing is null.

    Raises:
        HTTPException: 400.
    """
    if not text.strip():
        return None
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise HTTPException(400, f"expected JSON: {reason}") from error


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def check_plain(value: object, depth: int = 0) -> None:
    """Refuse what MONAI's parser would evaluate, in keys and values at any depth.

    Raises:
        HTTPException: 422 for an expression, 400 for deep nesting.
    """
    if depth > MAX_DEPTH:
        raise HTTPException(400, f"JSON nested too deeply: at most {MAX_DEPTH} levels are read")
    if isinstance(value, str) and value.startswith(_EXPRESSION_MARKS):
        raise HTTPException(422, f"expected plain values, got an expression: {value[:40]!r}")
    if isinstance(value, Mapping):
        for key, member in value.items():
            check_plain(key, depth + 1)
            check_plain(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            check_plain(member, depth + 1)


def stop(sentence: str) -> None:
    """For commands: one line and exit code 2."""
    print(sentence, file=sys.stderr)
    sys.exit(2)
