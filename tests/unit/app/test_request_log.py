"""lib.request_log, lib.telemetry and lib.stock_routes: one line per request, told by route, with nothing of anybody."""

from __future__ import annotations

import inspect
import json
import logging
import threading

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.endpoints import datastore, info
from prometheus_client import generate_latest

from lib.access import endpoints
from lib.config import Config
from lib.gate import Gate
from lib.request_log import RequestLog
from lib.stock_routes import in_thread
from lib.telemetry import Telemetry

SECRET = "Musterfrau^Erika"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    logger = logging.getLogger("imis.requests")
    monkeypatch.setattr(logger, "handlers", [Keep()])
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    return kept


def _client(telemetry: Telemetry) -> TestClient:
    server = FastAPI()

    @server.get("/info/")
    def fine() -> dict[str, str]:
        return {"patient": SECRET}

    @server.get("/datastore/label")
    def broken(label: str) -> None:
        raise FileNotFoundError(f"no such file: {label}")

    known = list(endpoints(server.router.routes))
    server.add_middleware(Gate, config=Config(), endpoints=lambda: known, credentials=None)
    server.add_middleware(RequestLog, telemetry=telemetry)
    return TestClient(server, base_url="http://127.0.0.1", client=("127.0.0.1", 1))


def test_a_line_and_a_count_for_every_answer_and_no_name_in_them(lines: list[str]) -> None:
    """Breaks if a path, a query, a body or what an endpoint raised reaches the log or the metrics."""
    telemetry = Telemetry()
    client = _client(telemetry)
    answers = [
        client.get("/info/", params={"q": SECRET}),
        client.get("/datastore/label", params={"label": SECRET}),
        client.get(f"/nowhere/{SECRET}", headers={"X-Request-ID": SECRET, "Authorization": f"Bearer {SECRET}"}),
        client.request(f"X{SECRET[:5]}", "/info/"),
    ]
    assert [a.status_code for a in answers] == [200, 500, 404, 405]
    told = [json.loads(line) for line in lines]
    assert [t["request"] for t in told] == [a.headers["x-request-id"] for a in answers]
    assert [t["route"] for t in told] == ["/info/", "/datastore/label", "none", "none"]
    assert told[1]["error"] == "FileNotFoundError"
    assert told[1]["request"] in answers[1].json()["detail"]
    metrics = generate_latest(telemetry.registry).decode()
    assert 'imis_http_requests_total{method="GET",route="/info/",status="200"} 1.0' in metrics
    for text in ("\n".join(lines), metrics, answers[1].text):
        assert "Muster" not in text
        assert "Erika" not in text


def test_stages_add_up_under_the_names_that_are_promised() -> None:
    """Breaks if a stage disappears from the histogram or is counted twice."""
    telemetry = Telemetry()
    telemetry.queued(0.25)
    telemetry.stages({"read": 100, "slice": 50, "encode": 400, "predict": 30, "write": 20, "total": 600})
    metrics = generate_latest(telemetry.registry).decode()
    for stage, seconds in (("queue", 0.25), ("read", 0.15), ("encode", 0.4), ("decode", 0.03), ("write", 0.02)):
        assert f'imis_stage_seconds_sum{{stage="{stage}"}} {seconds}' in metrics
    assert 'stage="total"' not in metrics


def test_stock_endpoints_run_in_threads_with_their_own_signature() -> None:
    """Breaks if a host's coroutine stays on the event loop, or loses a parameter or its own role check."""
    for stock in (info.api_app_info, datastore.api_get_image_info):
        plain = in_thread(stock)
        assert not inspect.iscoroutinefunction(inspect.unwrap(plain))
        assert list(inspect.signature(plain).parameters) == list(inspect.signature(stock).parameters)

    async def which() -> int:
        return threading.get_ident()

    server = FastAPI()
    server.get("/loop")(which)
    server.get("/thread")(in_thread(which))
    with TestClient(server) as client:
        assert client.get("/loop").json() != client.get("/thread").json()


def test_an_endpoint_that_waits_is_not_taken_for_one_that_does_not() -> None:
    """Breaks if a later MONAI Label awaits something and its endpoint answers nothing instead of failing."""

    async def waits() -> int:
        await _pause()
        return 1

    with pytest.raises(RuntimeError, match="does not wait"):
        in_thread(waits)()


class _pause:
    def __await__(self):
        yield
