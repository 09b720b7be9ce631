"""A page to look over made masks: accept, reject or rename. For one person on one machine: binds to it alone."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import FileResponse, HTMLResponse
from PIL import Image
from pydantic import BaseModel, Field
from scipy import ndimage
from starlette.middleware.trustedhost import TrustedHostMiddleware

from imis_net.data_engine.assembly import read_index
from imis_net.data_engine.layout import read_masks
from imis_net.data_engine.review import Decision, decide, read_record, write_index
from imis_net.errors import DatasetError

PAGE = Path(__file__).with_name("review.html")


class Verdict(BaseModel):
    """What the page sends."""

    stem: str = Field(max_length=300)
    mask_id: int
    verdict: str
    name: str | None = None


def make_app(out: Path, reviewer: str) -> FastAPI:
    """The page on a folder of ``build_masks``; the index is written anew when the server ends or on request.

    Raises:
        DatasetError: a folder without an index.
    """
    if not (out / "index.jsonl").is_file():
        raise DatasetError(f"{out}: expected a folder made by build_masks, with an index.jsonl")
    stems = [r["stem"] for r in read_index(out)]
    lock = threading.Lock()  # two verdicts on one image would each write the other's away

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        write_index(out)

    app = FastAPI(title="Mask review", lifespan=lifespan)
    # A page elsewhere that makes its name point here must not reach it.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "testserver"])

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text()

    @app.get("/images")
    def images(offset: int = Query(0, ge=0), limit: int = Query(100, ge=1, le=1000)) -> dict[str, Any]:
        return {"total": len(stems), "stems": stems[offset : offset + limit]}

    @app.get("/record/{stem}")
    def record(stem: str) -> dict[str, Any]:
        return _found(out, stem, stems)

    @app.get("/image/{stem}")
    def image(stem: str) -> FileResponse:
        return FileResponse(out / _found(out, stem, stems)["image"], media_type="image/png")

    @app.get("/mask/{stem}/{mask_id}")
    def mask(stem: str, mask_id: int) -> Response:
        facts = _found(out, stem, stems)
        if not 1 <= mask_id <= len(facts["masks"]):
            raise HTTPException(404, f"no mask {mask_id}: expected 1 to {len(facts['masks'])}")
        return Response(_tint(read_masks(out, facts)[mask_id - 1]), media_type="image/png")

    @app.post("/verdict")
    def verdict(given: Verdict) -> dict[str, Any]:
        _found(out, given.stem, stems)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            decision = Decision(given.stem, given.mask_id, given.verdict, now, reviewer, given.name)  # type: ignore[arg-type]
            with lock:
                return decide(out, decision)
        except DatasetError as error:
            raise HTTPException(422, str(error)) from error
        except OSError as error:
            raise HTTPException(507, f"cannot be written: {error.strerror}") from error

    @app.post("/index")
    def index() -> dict[str, int]:
        with lock:
            write_index(out)
        return {"total": len(stems)}

    return app


def _found(out: Path, stem: str, stems: list[str]) -> dict[str, Any]:
    if stem not in stems:
        raise HTTPException(404, f"no such image: {stem[:80]!r}")
    return read_record(out, stem)


def _tint(mask: np.ndarray) -> bytes:
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask] = (255, 176, 0, 90)
    rgba[mask & ~ndimage.binary_erosion(mask)] = (255, 176, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    return buffer.getvalue()
