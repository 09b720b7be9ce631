"""Versions of the model over HTTP: what is served and why, the reports of retraining, and the way back."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import HTTPException
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from imis_net.errors import CheckpointError
from lib.retraining import new_labels, read_status

if TYPE_CHECKING:
    from main import ImisApp

MAX_NUM_RUNS = 50


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    """Plain functions, which FastAPI runs in its threads: they read files."""

    def models() -> dict[str, object]:
        """What is served, all versions kept, how training stands, and when the next one is due."""
        return _models(app())

    def rollback() -> dict[str, object]:
        """Serve the version before this one. 409: there is none."""
        start = time.perf_counter()
        try:
            digest = app().publication.rollback("rolled back over HTTP")
        except CheckpointError as error:
            raise HTTPException(409, str(error)) from error
        weights = app().engine.segmenter.weights_digest
        return {"served": digest, "weights": weights, "seconds": round(time.perf_counter() - start, 4)}

    def reports() -> dict[str, object]:
        """The last retrainings, newest first."""
        return {"runs": [_run(folder) for folder in _runs(app().retraining_root)[:MAX_NUM_RUNS]]}

    def report(run: str) -> HTMLResponse:
        """One retraining as a page; ``latest`` is the last."""
        folders = _runs(app().retraining_root)
        if run != "latest":
            folders = [f for f in folders if f.name == run]
        if not folders or not re.fullmatch(r"latest|\w+", run):
            raise HTTPException(404, f"no report of a retraining {run[:40]!r}; /imis/models/reports lists them")
        return HTMLResponse((folders[0] / "report.html").read_text())

    tags: list[str] = ["Models"]
    return [
        APIRoute("/imis/models", models, methods=["GET"], tags=tags),  # type: ignore[arg-type]
        APIRoute("/imis/models/rollback", rollback, methods=["POST"], tags=tags),  # type: ignore[arg-type]
        APIRoute("/imis/models/reports", reports, methods=["GET"], tags=tags),  # type: ignore[arg-type]
        APIRoute("/imis/models/reports/{run}", report, methods=["GET"], tags=tags, response_class=HTMLResponse),  # type: ignore[arg-type]
    ]


def _models(app: ImisApp) -> dict[str, object]:
    registry, schedule = app.publication.registry, app.schedule
    served = registry.current()
    return {
        "served": app.publication.digest,
        "weights": app.engine.segmenter.weights_digest,
        "previous": list(served.previous) if served else [],
        "error": app.publication.error,
        "versions": [{"digest": digest, **registry.facts(digest)} for digest in registry.versions()],
        "history": registry.history()[-MAX_NUM_RUNS:],
        "training": read_status(app.retraining_root),
        "schedule": {
            "cron": schedule.cron,
            "after_labels": schedule.after_labels,
            "new_labels": len(new_labels(app.retraining_root, app.datastore())),
            "next_run": schedule.next_run(),
            "leads": schedule.is_leader,
        },
    }


def _runs(root: Path) -> list[Path]:
    folder = root / "runs"
    done = [f for f in folder.iterdir() if (f / "outcome.json").is_file()] if folder.is_dir() else []
    return sorted(done, key=lambda f: f.name, reverse=True)


def _run(folder: Path) -> dict[str, object]:
    return {"run": folder.name, **json.loads((folder / "outcome.json").read_text())}
