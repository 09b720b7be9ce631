"""lib.routes: our routes stand before the stock ones once, and names that are paths reach no endpoint."""

from __future__ import annotations

import json

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib import routes
from lib.names import checked_name
from lib.params import json_object


@pytest.fixture
def server() -> FastAPI:
    """A server with endpoints that fail as MONAI Label's do."""
    server = FastAPI()

    @server.put("/labels/of/ours")
    async def put(image: str = "", tag: str = "") -> dict[str, str]:
        if image == "unknown":
            raise MONAILabelException(MONAILabelError.APP_ERROR, "Image unknown not found")
        if image == "broken":
            json.loads("{")
        return {"image": image, "tag": tag}

    routes.install(server, lambda: None)  # type: ignore[arg-type, return-value]
    return server


@pytest.mark.parametrize("name", ["a/b", "/etc/passwd", "..", "a..b", ".hidden", "a\\b", "a\x00b", "a\nb"])
def test_names_that_walk_or_hide_are_refused(name: str) -> None:
    """Breaks when a name could leave the folder that it is joined to."""
    with pytest.raises(HTTPException, match="without path") as error:
        checked_name("image", name)
    assert error.value.status_code == 422


@pytest.mark.parametrize("name", ["abdomen_ct_1", "1.2.840.113619.2.55", "Fall 3 (neu)", "größe"])
def test_ordinary_names_pass(name: str) -> None:
    """Breaks when a DICOM UID or a name of another language becomes an error."""
    assert checked_name("image", name) == name


def test_paths_in_the_query_reach_no_endpoint(server: FastAPI) -> None:
    """Breaks when the guard misses an encoding or a key, or refuses what is no path."""
    client = TestClient(server)
    for query in ("image=../x", "image=a&tag=..%2F..%2Fx", "tag=%2Fetc", "id=a%5Cb", "label=a%00b"):
        assert client.put(f"/labels/of/ours?{query}").status_code == 422, query
    assert client.put("/labels/of/ours?image=1.2.3&tag=final").json() == {"image": "1.2.3", "tag": "final"}


def test_stock_exceptions_become_4xx_with_their_words(server: FastAPI) -> None:
    """Breaks when the handlers are not in the stack that serves requests."""
    client = TestClient(server, raise_server_exceptions=False)
    unknown = client.put("/labels/of/ours?image=unknown")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "Image unknown not found")
    assert client.put("/labels/of/ours?image=broken").status_code == 400


def test_installing_twice_leaves_one_of_each(server: FastAPI) -> None:
    """Breaks when a reload stacks routes of dead app instances."""
    before = len(server.router.routes)
    routes.install(server, lambda: None)  # type: ignore[arg-type, return-value]
    assert len(server.router.routes) == before


@pytest.mark.parametrize("text", ["{", "[]", "3", '"x"', "[" * 100_000])
def test_params_must_be_a_json_object(text: str) -> None:
    """Breaks when broken or hostile JSON becomes a 500."""
    with pytest.raises(HTTPException, match="JSON object") as error:
        json_object(text)
    assert error.value.status_code == 400
