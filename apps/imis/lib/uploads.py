"""Kept labels on their way to an archive: what could not be sent is sent again, until it is there.

What waits is a row of the label store, written with the version itself: neither a kill nor a restart forgets it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from imis_net.errors import ImageError
from lib.label_store import IMPOSSIBLE, STORED, WAITING, LabelStore, LabelStoreError, Upload, Version

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 600.0


class Refused(Exception):
    """The archive answered, and did not take it."""


class Unreachable(Exception):
    """The archive does not answer: so it is of no use to try the next."""


class Uploads:
    """One thread sends, so that nothing is sent twice at a time; a new label begins a round at once."""

    def __init__(self, store: LabelStore, send: Callable[[Version], None]) -> None:
        """``send`` raises Refused or Unreachable, and ImageError for what can be no DICOM SEG."""
        self._store, self._send = store, send
        self._changed = threading.Condition()
        self._is_asked = False
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send_now(self, version: int, timeout_s: float) -> Upload | None:
        """How far the version is after one try, or after the time that somebody waits for it."""
        if self._thread.is_alive():
            with self._changed:
                self._is_asked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._was_tried(version), timeout_s)
        return self._store.upload(version)

    def _was_tried(self, version: int) -> bool:
        upload = self._store.upload(version)
        return upload is None or upload.state != WAITING or bool(upload.reason)

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                is_done = self._round()
            except Exception:  # such as a full disk: what is to be sent stays known
                logger.exception("labels cannot be uploaded")
                is_done = False
            with self._changed:
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_asked, LONGEST_PAUSE_S if is_done else pause_s)
                self._is_asked = False
            pause_s = FIRST_PAUSE_S if is_done else min(2 * pause_s, LONGEST_PAUSE_S)

    def _round(self) -> bool:
        """Try all that waits; whether nothing does any more."""
        waiting = self._store.waiting()
        for version in waiting:
            try:
                upload = self._tried(version)
            except Unreachable as error:
                for each in waiting:
                    self._store.set_upload(each.id, Upload(WAITING, str(error)))
                return False
            self._store.set_upload(version.id, upload)
            with self._changed:
                self._changed.notify_all()
        return not self._store.waiting()

    def _tried(self, version: Version) -> Upload:
        try:
            self._send(version)
        except Unreachable:
            raise
        except (Refused, LabelStoreError) as error:  # the latter for a disk that fails
            return Upload(WAITING, str(error))
        except ImageError as error:
            return Upload(IMPOSSIBLE, str(error))
        except Exception as error:  # the others shall go
            logger.exception("version %d of a label cannot be uploaded", version.id)
            return Upload(WAITING, f"it could not be written ({type(error).__name__})")
        return Upload(STORED)
