"""Labels that an archive shall have, whatever it does meanwhile: a real SQLite and real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imis_net.errors import ImageError
from lib import uploads as module
from lib.label_store import LabelStore, Upload, Version
from lib.uploads import Refused, Unreachable, Uploads


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LabelStore:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.02)
    return LabelStore(tmp_path)


def saved(store: LabelStore, content: bytes = b"label") -> Version:
    return store.append("image", "final", content, ".nii", "ann", {}, is_to_upload=True)


def begun(store: LabelStore, send: Callable[[Version], None]) -> Uploads:
    uploads = Uploads(store, send)
    uploads.start()
    return uploads


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("not so after five seconds")


def test_what_waits_outlives_the_server_and_is_sent_once(store: LabelStore, tmp_path: Path) -> None:
    """Breaks if a label that was saved without its archive is forgotten at the next start, or sent at each one."""
    versions = [saved(store, b"%d" % n) for n in range(3)]
    store.append("image", "original", b"not for the archive", ".nii", "ann", {})
    store.close()
    sent: list[int] = []
    for _ in range(2):
        again = LabelStore(tmp_path)
        begun(again, lambda version: sent.append(version.id))
        until(lambda again=again: not again.waiting())  # type: ignore[misc]
    assert sorted(sent) == [v.id for v in versions]
    assert again.upload(versions[0].id) == Upload("stored")
    assert again.upload(4) is None


def test_an_archive_that_comes_back_gets_all(store: LabelStore) -> None:
    """Breaks if retrying ends, or the one who saves is not told why."""
    tries: list[int] = []

    def send(version: Version) -> None:
        tries.append(version.id)
        if len(tries) < 4:
            raise Unreachable("no answer")

    uploads = begun(store, send)
    first, second = saved(store), saved(store)
    assert uploads.send_now(second.id, 5) == Upload("waiting", "no answer")
    until(lambda: not store.waiting())
    assert (store.upload(first.id), store.upload(second.id)) == (Upload("stored"), Upload("stored"))
    assert tries.count(first.id) == 1, "where nobody answers, the others are not tried"


def test_one_that_is_refused_or_impossible_does_not_hold_up_the_others(store: LabelStore) -> None:
    """Breaks if one bad label keeps every later one out of the archive, or ends the thread."""
    faults = {b"refused": Refused("full"), b"empty": ImageError("nothing labelled"), b"bug": KeyError("x")}

    def send(version: Version) -> None:
        if fault := faults.get(store.read(version)):
            raise fault

    versions = {content: saved(store, content) for content in (b"good", *faults)}
    uploads = begun(store, send)
    assert uploads.send_now(versions[b"good"].id, 5) == Upload("stored")
    assert store.upload(versions[b"refused"].id) == Upload("waiting", "full")
    assert store.upload(versions[b"empty"].id) == Upload("impossible", "nothing labelled")
    assert store.upload(versions[b"bug"].id) == Upload("waiting", "it could not be written (KeyError)")
    faults.clear()
    until(lambda: not store.waiting())
    assert store.upload(versions[b"empty"].id) == Upload("impossible", "nothing labelled")


def test_an_archive_that_hangs_holds_up_nobody_for_long(store: LabelStore) -> None:
    """Breaks if an annotator waits for as long as the archive pleases."""
    answers = threading.Event()
    uploads = begun(store, lambda version: answers.wait(20) and None)
    started = time.monotonic()
    assert uploads.send_now(saved(store).id, 0.2) == Upload("waiting")
    assert time.monotonic() - started < 5
    answers.set()
    until(lambda: not store.waiting())


def test_where_nothing_sends_nobody_waits(store: LabelStore) -> None:
    """Breaks if a process that serves nobody, such as one that segments in the background, stops for each label."""
    started = time.monotonic()
    assert Uploads(store, lambda version: None).send_now(saved(store).id, 30) == Upload("waiting")
    assert time.monotonic() - started < 5
