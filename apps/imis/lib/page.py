"""The page at ``/imis/``: its files, and images as the one format that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from fastapi import HTTPException, Response
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from imis_net.errors import ImageError
from imis_net.images import Volume

if TYPE_CHECKING:
    from main import ImisApp

STATIC = Path(__file__).resolve().parents[1] / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".txt": "text/plain"}
_HEADERS = {
    # Nothing from elsewhere, so that the page works offline and a study's name cannot become a script.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' blob: data:; frame-ancestors 'self'",
    "Cache-Control": "no-cache",
}
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    def index() -> FileResponse:
        """A viewer for the studies of this server."""
        return file("index.html")

    def file(name: str) -> FileResponse:
        """One of the page's own files."""
        known = {path.name: path for path in STATIC.iterdir()}
        if name not in known:
            raise HTTPException(404, f"no such file: got {name[:40]!r}")
        return FileResponse(known[name], media_type=_TYPES.get(known[name].suffix), headers=_HEADERS)

    def image(image: str) -> Response:
        """Any image that this server reads, as NIfTI with the voxels in their own order."""
        try:
            volume = app().engine.volumes.read(app().path_of(image))
        except ImageError as error:
            raise HTTPException(422, str(error)) from error
        return Response(nifti(volume), media_type="application/octet-stream")

    made: list[tuple[str, Callable[..., Response]]] = [
        ("/imis/", index),
        ("/imis/static/{name}", file),
        ("/imis/image", image),
    ]
    return [APIRoute(path, endpoint, methods=["GET"], tags=["Page"], response_model=None) for path, endpoint in made]


def nifti(volume: Volume) -> bytes:
    """Uncompressed NIfTI-1, i fastest; the display limits are those that the network's picture has."""
    array = volume.array
    if volume.is_colour:
        array = np.ascontiguousarray(array).view(_RGB)[..., 0]
    elif array.dtype.itemsize > 4 or array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    file = nib.Nifti1Image(array, volume.affine)
    file.set_sform(volume.affine, code=1)
    file.set_qform(None, code=0)
    if not volume.is_colour and array.dtype != np.uint8:
        file.header["cal_min"], file.header["cal_max"] = volume.default_limits
    return bytes(file.to_bytes())
