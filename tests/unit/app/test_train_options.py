"""lib.train_options and lib.train_routes: what may be asked of a training, and what is refused before it begins."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from imis_net.errors import ImisError
from lib import train_routes
from lib.config import Config
from lib.train_options import LEARN_ALL, LEARN_DECODER, TrainOptions, read_options, shown

CHOICES = [LEARN_ALL, LEARN_DECODER]


def test_what_is_shown_can_be_sent_back() -> None:
    """Breaks if a viewer whose user changed nothing is refused, or gets another run than the schedule."""
    for config in (Config(), Config(retrain_adapters=8, retrain_minutes=3)):
        sent = json.loads(json.dumps(shown(config)))
        assert sent["adapters"] == config.retrain_adapters
        assert read_options(sent, config) == read_options({}, config)


@pytest.mark.parametrize(
    ("request_", "config", "options"),
    [
        ({}, Config(), (True, 0)),
        ({}, Config(retrain_adapters=4), (True, 4)),  # the schedule sends nothing
        ({"adapters": 8}, Config(), (True, 8)),
        ({"adapters": "8", "learn": CHOICES}, Config(), (True, 8)),
        ({"adapters": 0}, Config(retrain_adapters=4), (True, 0)),
        ({"learn": LEARN_DECODER}, Config(retrain_adapters=4), (False, 0)),
        ({}, Config(segmenter="triton"), (False, 0)),
        ({"adapters": 8}, Config(segmenter="triton"), (True, 8)),
        ({}, Config(segmenter="onnxruntime"), (True, 0)),
    ],
)
def test_options_of_a_request_go_before_the_deployments(
    request_: dict[str, object], config: Config, options: tuple[bool, int]
) -> None:
    """Breaks if a choice is ignored, or the neck is trained where Triton's encoder stays."""
    assert read_options(request_, config) == TrainOptions(*options, 600.0)


BAD = [
    ({"adapters": 65}, "adapters: got 65, expected a rank from 1 to 64"),
    ({"adapters": -1}, "adapters: got -1, expected a rank from 1 to 64"),
    ({"adapters": "many"}, "adapters: got 'many', expected a rank"),
    ({"adapters": True}, "adapters: got 'True', expected a rank"),
    ({"adapters": 2.5}, "adapters: got '2.5', expected a rank"),
    ({"adapters": [8]}, "adapters: got '[8]', expected a rank"),
    ({"adapters": 8, "learn": LEARN_DECODER}, "adapters: got 8 with learn 'prompt encoder and decoder'"),
    ({"max_minutes": "soon"}, "max_minutes: got 'soon', expected a number"),
    ({"max_minutes": "nan"}, "max_minutes: got 'nan', expected a number"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_an_option_that_cannot_be_is_a_4xx_and_starts_nothing(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a viewer shows a training that was started and fails a minute later in a process of its own."""
    with pytest.raises(ImisError) as error:
        read_options(options, Config())
    assert str(error.value).startswith(message)
    monkeypatch.setattr(train_routes.train, "app_instance", lambda: pytest.fail("started"))
    monkeypatch.setattr(train_routes.train.AsyncTask, "run", lambda *a, **k: pytest.fail("started"))
    server = FastAPI()
    server.router.routes[:0] = train_routes.routes(lambda: SimpleNamespace(config=Config()))  # type: ignore[arg-type, return-value]
    client = TestClient(server)
    for path, body in (("/train/imis", options), ("/train/", options), ("/train/", {"imis": options})):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["detail"].startswith(message)) == (422, True)


def test_options_that_can_be_reach_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a request is read here and lost, or a second one while a training runs is no 429."""
    started: list[tuple[object, ...]] = []

    def run(method: str, request: object, params: object, **flags: bool) -> tuple[object, str]:
        started.append((method, request, params, flags))
        return (None, "runs already") if len(started) > 1 else ({"id": "1"}, "")

    monkeypatch.setattr(train_routes.train.AsyncTask, "run", run)
    server = FastAPI()
    server.router.routes[:0] = train_routes.routes(lambda: SimpleNamespace(config=Config()))  # type: ignore[arg-type, return-value]
    client = TestClient(server)
    assert client.post("/train/imis", json={"adapters": 8}).json() == {"id": "1"}
    flags = {"force_sync": False, "enqueue": False}
    assert started == [("train", {"model": "imis"}, {"adapters": 8}, flags)]
    assert client.post("/train/imis?enqueue=true").status_code == 429
