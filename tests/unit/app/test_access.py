"""lib.access and lib.gate: each route of the real server has a role, which opens what it should and no more."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.app import app as monailabel_server
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lib import routes
from lib.access import ACCESS, Endpoint, Role, endpoints, role_needed
from lib.config import Config, read_config
from lib.gate import Gate, check_binding, check_plain, credentials_of
from lib.identity import TokenFile

TOKENS = {name: f"token-of-{name}" for name in ("annotator", "reviewer", "admin", "expired")}


def _whole_server() -> FastAPI:
    server = FastAPI()
    server.router.routes[:] = list(monailabel_server.router.routes)
    routes.install(server, lambda: None)  # type: ignore[arg-type, return-value]
    return server


KNOWN = list(endpoints(_whole_server().router.routes))


def test_every_route_is_classified_and_no_entry_is_stale() -> None:
    """Breaks when a route is added without anybody deciding who may call it."""
    templates = {endpoint.template for endpoint in KNOWN}
    assert len(templates) > 40
    assert not templates - set(ACCESS), "say in lib/access.py who may call these"
    assert not set(ACCESS) - templates - {"/auth/", "/auth/token", "/auth/token/valid"}, "these routes are no more"
    for endpoint in KNOWN:
        entry = ACCESS[endpoint.template]
        if not isinstance(entry, Role):
            assert endpoint.methods <= set(entry), endpoint


def test_what_nobody_thought_of_is_for_admins() -> None:
    """Breaks if a forgotten route is open."""
    assert role_needed("/new/route", "GET") == Role.ADMIN
    assert role_needed("/datastore/label", "PATCH") == Role.ADMIN
    assert role_needed("/reload", "POST") == Role.ADMIN


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    with file.open("w") as lines:
        for name, token in TOKENS.items():
            entry = {"user": name, "role": "admin" if name == "expired" else name}
            entry["sha256"] = hashlib.sha256(token.encode()).hexdigest()
            if name == "expired":
                entry["expires"] = time.time() - 1  # type: ignore[assignment]
            lines.write(json.dumps(entry) + "\n")
    return TokenFile(file)


def _client(config: Config, credentials: TokenFile | None, client: tuple[str, int] = ("127.0.0.1", 1)) -> TestClient:
    """The gate alone: behind it everything answers 204."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await PlainTextResponse(status_code=204)(scope, receive, send)

    gate = Gate(inner, config, lambda: KNOWN, credentials)
    return TestClient(gate, base_url="http://127.0.0.1", client=client)


def _path(endpoint: Endpoint) -> str:
    parts = [("x" if part.startswith("{") else part) for part in endpoint.template.split("/")]
    return "/".join(parts) + ("/x" if endpoint.template == "/static" else "")


def test_every_route_with_every_kind_of_credentials(credentials: TokenFile) -> None:
    """Breaks if any method of any route opens to less than its role, or stays shut to it."""
    client = _client(Config(auth="tokens"), credentials)
    given = {"none": ({}, Role.PUBLIC), "bad": ({"Authorization": "Bearer wrong"}, Role.PUBLIC)}
    for name, token in TOKENS.items():
        role = Role.PUBLIC if name == "expired" else Role[name.upper()]
        given[name] = ({"Authorization": f"Bearer {token}"}, role)
    num_tried = 0
    for endpoint in KNOWN:
        for method in endpoint.methods or {"GET"}:
            for name, (headers, role) in given.items():
                # What the router would pick: an earlier route may take the path of a later template.
                picked = next(e for e in KNOWN if e.takes(method, _path(endpoint)))
                needed = role_needed(picked.template, method)
                status = client.request(method, _path(endpoint), headers=headers).status_code
                wanted = 204 if role >= needed else 401 if name in ("none", "bad", "expired") else 403
                assert status == wanted, (method, endpoint.template, name)
                num_tried += 1
    assert num_tried > 400


def test_a_cookie_opens_as_a_header_does(credentials: TokenFile) -> None:
    """Breaks if a browser, which sends no header of its own, cannot work with authentication on."""
    client = _client(Config(auth="tokens"), credentials)
    assert client.get("/info/", headers={"Cookie": f"a=b; imis_token={TOKENS['annotator']}"}).status_code == 204
    assert client.get("/info/", headers={"Cookie": "imis_token=wrong"}).status_code == 401


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (("127.0.0.1", 1), {}, 204),
        (("127.0.0.1", 1), {"Host": "localhost:8000"}, 204),
        (("192.168.0.7", 1), {}, 403),
        (("127.0.0.1", 1), {"Host": "attacker.example"}, 403),
        (("127.0.0.1", 1), {"Host": "[::1"}, 403),
        (("127.0.0.1", 1), {"Origin": "http://attacker.example"}, 403),
        (("127.0.0.1", 1), {"Origin": "null"}, 403),
        (("127.0.0.1", 1), {"Origin": "http://127.0.0.1"}, 204),
    ],
)
def test_without_credentials_only_this_computer(client: tuple[str, int], headers: dict, status: int) -> None:
    """Breaks if another machine, a rebound name or another site's page gets through to an open server."""
    answer = _client(Config(), None, client).post("/train/x", headers=headers)
    assert answer.status_code == status


def test_an_open_server_has_no_admin(credentials: TokenFile) -> None:
    """Breaks if anybody on this computer may reload the server or replace its weights over HTTP."""
    client = _client(Config(), None)
    assert client.post("/reload").status_code == 403
    assert client.put("/model/imis").status_code == 403


@pytest.mark.parametrize(
    ("arguments", "is_refused"),
    [
        ([], True),
        (["--host", "0.0.0.0"], True),
        (["-i", "192.168.0.7"], True),
        (["--hos=::"], True),
        (["--host", "127.0.0.1"], False),
        (["--host=localhost"], False),
        (["-i", "::1"], False),
    ],
)
def test_a_server_for_others_must_know_whom_it_lets_in(arguments: list[str], is_refused: bool) -> None:
    """Breaks if MONAI Label's own command, which listens everywhere by default, opens the studies to everybody."""
    argv = ["monailabel", "start_server", "--app", "a", "--studies", "s", *arguments]
    for conf, may_start in (({}, not is_refused), ({"let_anybody_in": "yes"}, True)):
        if may_start:
            check_binding(read_config(conf), argv)
        else:
            with pytest.raises(ValueError, match="refusing to listen on"):
                check_binding(read_config(conf), argv)


def test_credentials_let_a_server_listen_everywhere(tmp_path: Path) -> None:
    """Breaks if a server that asks everybody who they are may not serve others."""
    (tmp_path / "tokens").touch()
    config = read_config({"auth": "tokens", "tokens_file": str(tmp_path / "tokens")})
    check_binding(config, ["monailabel", "start_server", "--host", "0.0.0.0"])
    assert credentials_of(config) is not None
    assert credentials_of(read_config({"auth": "oidc", "oidc_issuer": "https://a.example/realms/b"})) is not None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"max_epochs": "$__import__(\'os\')"}', 422),
        (b'{"a": [{"$b": 1}]}', 422),
        (b'["@model", "%x"]', 422),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 50 + b"1" + b"}" * 50, 400),
        (b'{"a": NaN}', 400),
        (b"\xff\xfe", 400),
        (b'{"max_epochs": 3, "name": "5 $"}', 204),
        (b"", 204),
    ],
)
def test_json_is_looked_through_before_any_endpoint(body: bytes, status: int) -> None:
    """Breaks if an expression that MONAI would evaluate, or a bomb, reaches an endpoint of the host."""
    answer = _client(Config(), None).post("/train/x", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text


def test_a_forged_length_is_refused() -> None:
    """Breaks if memory is spent on a body before its size is known to be bearable."""
    client = _client(Config(), None)
    for length in ("99999999999999", "-1", "1e9", "\u0663"):
        headers = {"Content-Length": length.encode("utf-8"), "Content-Type": "application/json"}
        assert client.post("/train/x", content=b"{}", headers=headers).status_code == 413, length


def test_a_body_longer_than_it_said_is_cut_off() -> None:
    """Breaks if a chunked body may grow without end."""

    def chunks():
        for _ in range(200):
            yield b" " * 65536

    answer = _client(Config(), None).post("/train/x", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_plain_values_pass() -> None:
    """Breaks if what viewers really send is refused."""
    check_plain({"foreground": [[1, 2, 3]], "label": "5 % glucose", "text": "", "a": None, "b": True})
