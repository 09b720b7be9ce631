"""Slices around the one being worked on are encoded ahead, and only while nobody waits for anything."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imis_net.interruption import Interrupted, interruptible_by
from lib.pictures import Place

logger = logging.getLogger(__name__)


class Prefetcher:
    """One thread. ``encode`` gets a place of each neighbour; it is interrupted the moment a click arrives."""

    def __init__(self, encode: Callable[[Place], None], reach: int) -> None:
        self.encode = encode
        self.reach = reach
        self._changed = threading.Condition()
        self._num_clicks = 0
        self._place: Place | None = None
        self._stop = threading.Event()
        self._stops = [self._stop]
        if reach:
            threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    @contextmanager
    def click(self) -> Iterator[None]:
        """While a click is answered nothing is encoded ahead."""
        with self._changed:
            self._num_clicks += 1
            for stop in self._stops:
                stop.set()
        try:
            yield
        finally:
            with self._changed:
                self._num_clicks -= 1
                self._changed.notify_all()

    def give_way(self, stop: threading.Event) -> None:
        """Set this event too when a click arrives: other work that nobody waits for."""
        self._stops.append(stop)

    def wait_idle(self) -> None:
        """Until no click is being answered."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_clicks)

    def around(self, place: Place) -> None:
        """Encode this place's neighbours next; an older place is given up."""
        with self._changed:
            self._place = place
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._place is not None and not self._num_clicks)
                place, self._place = self._place, None
                self._stop.clear()
            assert place is not None
            try:
                with interruptible_by(self._stop):
                    self._encode_around(place)
            except Interrupted:
                self._resume(place)
            except Exception as error:  # nobody waits for it: a click on that slice will tell its user
                logger.warning("encoding ahead failed: %s", type(error).__name__)

    def _encode_around(self, place: Place) -> None:
        for index in place.neighbours(self.reach):
            if self._stop.is_set():
                raise Interrupted
            self.encode(Place(place.volume, place.axis, index, place.window))

    def _resume(self, place: Place) -> None:
        """After the click, unless that brought a newer place; what is cached already costs nothing."""
        with self._changed:
            if self._place is None:
                self._place = place
