"""Starting a training over HTTP: options that cannot be are refused before a process is started for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Depends, HTTPException
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints import train
from monailabel.endpoints.user.auth import RBAC
from starlette.routing import BaseRoute

from imis_net.errors import ImisError
from lib.train_options import read_options

if TYPE_CHECKING:
    from main import ImisApp

Params = dict[str, Any] | None


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    """In place of MONAI Label's, of the same signatures."""

    def start(model: str, params: Params = None, run_sync: bool = False, enqueue: bool = False) -> object:
        """Train. 422: an option that cannot be; 429: a training runs."""
        _check(app(), params or {})
        return train.run_model(model, params, run_sync, enqueue)

    def start_all(params: Params = None, run_sync: bool = False) -> object:
        """Train whatever can be trained; options stand under a trainer's name, or are everybody's."""
        for options in (params or {}, *(o for o in (params or {}).values() if isinstance(o, dict))):
            _check(app(), options)
        return train.run(params, run_sync)

    admin = [Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]
    made: list[tuple[str, Callable[..., object]]] = [("/train/{model}", start), ("/train/", start_all)]
    return [
        APIRoute(path, endpoint, methods=["POST"], tags=["Train"], response_model=None, dependencies=admin)
        for path, endpoint in made
    ]


def _check(app: ImisApp, options: Mapping[str, Any]) -> None:
    try:
        read_options(options, app.config)
    except ImisError as error:
        raise HTTPException(422, str(error)) from error
