"""OHIF as MONAI Label ships it, with Box, Text, Propagate and Submit: a script at the end of its configuration file.

OHIF's panel for MONAI Label has none of the four. Its page runs ``app-config.js`` before anything else and leaves its
services in ``window``, so that nothing has to be rebuilt or patched.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from fastapi import Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from lib.page import STATIC

ADDON = STATIC / "ohif_addon.js"


def routes(app: Callable[[], object]) -> list[BaseRoute]:
    def config() -> Response:
        """The stock configuration and our panel."""
        return Response(
            _stock().read_text() + "\n" + ADDON.read_text(),
            media_type="text/javascript",
            headers={"Cache-Control": "no-cache"},
        )

    return [APIRoute("/ohif/app-config.js", config, methods=["GET"], include_in_schema=False, response_model=None)]


def _stock() -> Path:
    spec = find_spec("monailabel.endpoints")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "static" / "ohif" / "app-config.js"
