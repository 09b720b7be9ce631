"""Labels over HTTP: every save is a version that can be listed, fetched, compared and brought back.

=====================================================  =============================================================
``PUT  /datastore/label?image=ID&tag=final``           save; ``params`` may hold ``parent``, the version begun from
``GET  /imis/labels/{image}?tag=``                     all versions, the oldest first
``GET  /imis/labels/{image}/{version}``                the file as it was saved
``GET  /imis/labels/{image}/{version}/diff?against=N`` voxels by label that came and went, and Dice
``GET  /imis/labels/{image}/{version}/dicom_seg``      the same as DICOM SEG, where the image is a DICOM series
``POST /imis/labels/{image}/{version}/restore``        save it again as the newest
``GET  /imis/labels/{image}/archive``                  DICOM SEGs of the image on the PACS, the oldest first
``POST /imis/labels/{image}/archive/{series}``         take one of them in as the newest version
=====================================================  =============================================================
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import File, Form, HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from imis_net.dicom_seg import is_dicom_seg
from imis_net.errors import ImageError
from lib.dicom_labels import from_dicom_seg, series_of, to_dicom_seg
from lib.dicomweb_datastore import ARCHIVE, TAKEN_FROM, VersionedDicomWebDatastore
from lib.label_files import RAW_SUFFIX, LabelError, checked_label, label_array
from lib.label_store import LabelStore, LabelStoreError, Version
from lib.names import checked_name
from lib.params import json_object
from lib.prompt_log import TargetKey
from lib.versioned_datastore import AUTHOR, PARENT, VERSION
from lib.work import user_of

if TYPE_CHECKING:
    from main import ImisApp

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def routes(app: Callable[[], ImisApp]) -> list[BaseRoute]:
    def save(
        http: Request,
        image: str,
        label: Annotated[UploadFile, File()],
        params: Annotated[str, Form()] = "{}",
        tag: str = "final",
    ) -> dict[str, Any]:
        """Keep a label; what is answered 200 is on the disk. ``conflict``: somebody saved since ``parent``.

        422: not a label of this image. 507: the disk is full; nothing was kept.
        """
        info = {key: value for key, value in _info(params).items() if key not in (ARCHIVE, TAKEN_FROM)}
        author = user_of(http, info.get("client_id"))
        with tempfile.TemporaryDirectory() as folder:
            file = _received(label, Path(folder))
            path = app().path_of(image)
            with _as_4xx():
                volume = app().engine.volumes.read(path)
                if is_dicom_seg(file):
                    file = from_dicom_seg(file, series_of(app().datastore(), image, path), volume, info)
                file = checked_label(file, volume)
            before = _store(app()).newest(image, tag)
            facts: dict[str, Any] = {
                PARENT: before and before.id,
                **info,
                AUTHOR: author,
                **_origin(app(), author, image),
            }
            with _as_4xx():
                label_id = app().datastore().save_label(image, str(file), checked_name("tag", tag), facts)
        app().on_save_label(image, label_id)
        mine = _store(app()).get(image, int(facts[VERSION]))
        last = _store(app()).newest(image, tag, before=mine.id)
        conflict = last is not None and last.id != mine.parent
        answer = {"image": image, "label": label_id, VERSION: mine.id, PARENT: mine.parent, "conflict": conflict}
        return {**answer, **_archive(_store(app()), mine)}

    def versions(image: str, tag: str | None = None) -> dict[str, Any]:
        """All versions of an image's labels."""
        store = _store(app())
        return {"versions": [_shown(store, v) for v in store.versions(checked_name("image", image), tag)]}

    def fetch(image: str, version: int) -> Response:
        """A version's file, byte by byte."""
        with _as_4xx():
            found = _store(app()).get(image, version)
            content = _store(app()).read(found)
        name = f"version_{found.id}{found.suffix}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def dicom_seg(image: str, version: int) -> Response:
        """A version as DICOM SEG on the image's series; 422 where the image is no DICOM series."""
        with _as_4xx():
            found = _store(app()).get(image, version)
            path = app().path_of(image)
            volume, series = app().engine.volumes.read(path), series_of(app().datastore(), image, path)
            content = to_dicom_seg(found, _store(app()).read(found), series, volume)
        headers = {"Content-Disposition": f'attachment; filename="version_{found.id}.dcm"'}
        return Response(content, media_type="application/dicom", headers=headers)

    def diff(image: str, version: int, against: int) -> dict[str, Any]:
        """What changed from ``against`` to ``version``."""
        with _as_4xx():
            store = _store(app())
            new, old = (_array(app(), store.get(image, v)) for v in (version, against))
        if new.shape != old.shape:
            raise HTTPException(422, f"versions of different size: {list(new.shape)} and {list(old.shape)}")
        return {"labels": {str(value): _changes(new == value, old == value) for value in _values(new, old)}}

    def restore(http: Request, image: str, version: int) -> dict[str, Any]:
        """Make an older version the newest, as a version of its own."""
        with _as_4xx(), tempfile.TemporaryDirectory() as folder:
            store = _store(app())
            found = store.get(image, version)
            file = Path(folder) / f"label{found.suffix}"
            file.write_bytes(store.read(found))
            newest = store.newest(image, found.tag)
            facts: dict[str, Any] = {
                **found.facts,
                AUTHOR: user_of(http),
                PARENT: newest and newest.id,
                "restored_from": found.id,
            }
            app().datastore().save_label(image, str(file), found.tag, facts)
            return _shown(store, store.get(image, facts[VERSION]))

    def archived(image: str) -> dict[str, Any]:
        """What the PACS has for an image; 404 where the studies are a folder, 503 where it does not answer."""
        with _as_4xx():
            return {"archive": _pacs(app()).archived(checked_name("image", image))}

    def take_in(http: Request, image: str, series: str) -> dict[str, Any]:
        """Keep a DICOM SEG of the PACS; once only. 422: none of this image, or of a kind that cannot be read."""
        with _as_4xx():
            version = _pacs(app()).take_in(checked_name("image", image), checked_name("series", series), user_of(http))
        return _shown(_store(app()), _store(app()).get(image, version))

    made: list[tuple[str, Callable[..., object], str]] = [
        ("/datastore/label", save, "PUT"),
        ("/imis/labels/{image}", versions, "GET"),
        ("/imis/labels/{image}/archive", archived, "GET"),
        ("/imis/labels/{image}/archive/{series}", take_in, "POST"),
        ("/imis/labels/{image}/{version}", fetch, "GET"),
        ("/imis/labels/{image}/{version}/dicom_seg", dicom_seg, "GET"),
        ("/imis/labels/{image}/{version}/diff", diff, "GET"),
        ("/imis/labels/{image}/{version}/restore", restore, "POST"),
    ]
    return [APIRoute(path, call, methods=[method], tags=["Labels"], response_model=None) for path, call, method in made]


@contextmanager
def _as_4xx() -> Iterator[None]:
    """What the label store and the disk say, as answers."""
    try:
        yield
    except (LabelError, ImageError) as error:
        raise HTTPException(422, str(error)) from error
    except LabelStoreError as error:
        raise HTTPException(404, str(error)) from error
    except sqlite3.Error as error:
        full = "full" in str(error)
        raise HTTPException(507 if full else 503, f"label not saved: {error}") from error
    except OSError as error:
        full = error.errno in FULL
        raise HTTPException(507 if full else 503, f"label not saved: {error.strerror or 'the disk failed'}") from error


def _store(app: ImisApp) -> LabelStore:
    return app.label_store


def _pacs(app: ImisApp) -> VersionedDicomWebDatastore:
    if not isinstance(store := app.datastore(), VersionedDicomWebDatastore):
        raise HTTPException(404, "no PACS here: the studies are a folder")
    return store


def _info(params: str) -> dict[str, Any]:
    info = json_object(params)
    if not isinstance(info.get(PARENT), int | None):
        raise HTTPException(422, f"{PARENT}: expected the number of a version, got {info[PARENT]!r}")
    return info


def _received(upload: UploadFile, folder: Path) -> Path:
    suffixes = "".join(Path(upload.filename or "").suffixes[-2:])[-16:]
    file = folder / f"label{suffixes or '.nii.gz'}"
    with file.open("wb") as copy:
        shutil.copyfileobj(upload.file, copy)
    return file


def _origin(app: ImisApp, user: str, image: str) -> dict[str, object]:
    """Where the label came from: the weights that answer now, and this user's prompts on the image by target."""
    log = app.targets.log
    prompts = {t: [dict(e.params) for e in log.read(TargetKey(user, image, t))] for t in log.targets(user, image)}
    return {"weights": app.engine.segmenter.weights_digest, **({"prompts": prompts} if prompts else {})}


def _shown(store: LabelStore, version: Version) -> dict[str, Any]:
    facts = {key: value for key, value in asdict(version).items() if key != "image"}
    return {**facts, **_archive(store, version)}


def _archive(store: LabelStore, version: Version) -> dict[str, Any]:
    """How far it is on its way to the PACS, where there is one."""
    upload = store.upload(version.id)
    return {ARCHIVE: asdict(upload)} if upload else {}


def _array(app: ImisApp, version: Version) -> np.ndarray:
    is_raw = version.suffix == RAW_SUFFIX
    shape = app.engine.volumes.read(app.path_of(version.image)).array.shape[:3] if is_raw else ()
    return label_array(_store(app).read(version), version.suffix, shape)


def _values(*arrays: np.ndarray) -> list[int]:
    return sorted({int(v) for array in arrays for v in np.unique(array)} - {0})


def _changes(new: np.ndarray, old: np.ndarray) -> dict[str, float]:
    kept = int(np.count_nonzero(new & old))
    total = int(new.sum()) + int(old.sum())
    return {"added": int(new.sum()) - kept, "removed": int(old.sum()) - kept, "dice": 2 * kept / total}
