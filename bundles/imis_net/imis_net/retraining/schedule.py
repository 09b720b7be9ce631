"""When to retrain: a cron line or a number of new labels, kept in SQLite, in one of however many server processes.

The process that holds ``ROOT/leader.lock`` runs the scheduler; the others wait for the lock, which the system frees
when its holder ends, however it ends. A run that was missed meanwhile is caught up once.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

JOB = "retrain"
CHECK_LABELS_S = 5.0
_DUE: dict[str, Callable[[], object]] = {}
"""Store -> what to do: a kept job can only name a function of a module."""
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def check_cron(line: str) -> str:
    """The line, if it is one.

    Raises:
        ValueError: it is not; says what was expected.
    """
    _trigger(line)
    return line


class RetrainingSchedule:
    """Calls ``on_due`` when a retraining is due; it answers whether one was started, which it is not while one runs.

    ``new_labels`` gives what no run has gone through yet: image -> what changes when its label does.
    """

    def __init__(
        self,
        root: Path,
        cron: str,
        after_labels: int,
        new_labels: Callable[[], Mapping[str, str]],
        on_due: Callable[[], bool],
        check_labels_s: float = CHECK_LABELS_S,
    ) -> None:
        self.root, self.cron, self.after_labels = Path(root), cron, after_labels
        self.check_labels_s = check_labels_s
        self._new_labels, self._on_due = new_labels, on_due
        self._store = f"sqlite:///{self.root / 'schedule.sqlite'}"
        self._lock = FileLock(self.root / "leader.lock", thread_local=False)
        self._ended = threading.Event()
        self._tried: Mapping[str, str] = {}
        self._scheduler: BackgroundScheduler | None = None
        self._thread = threading.Thread(target=self._lead, name="schedule", daemon=True)

    @property
    def is_leader(self) -> bool:
        return self._lock.is_locked

    def start(self) -> None:
        """In the background: as soon as no other process leads."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def next_run(self) -> str:
        """ISO 8601 with the zone; "" where nothing is planned, or another process leads."""
        job = self._scheduler.get_job(JOB) if self._scheduler and self._scheduler.running else None
        return job.next_run_time.isoformat() if job and job.next_run_time else ""

    def _lead(self) -> None:
        while not self._ended.is_set():
            try:
                self._lock.acquire(timeout=0)
                break
            except Timeout:
                self._ended.wait(1.0)
        else:
            return
        try:
            self._run()
        except Exception:
            log.exception("the schedule ended")
        finally:
            self._lock.release()

    def _run(self) -> None:
        _DUE[self._store] = self._due
        scheduler = BackgroundScheduler(
            jobstores={"default": SQLAlchemyJobStore(self._store)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        scheduler.start(paused=True)
        self._plan(scheduler)
        scheduler.resume()
        self._scheduler = scheduler
        while not self._ended.wait(self.check_labels_s):
            self._check_labels()
        scheduler.shutdown(wait=False)

    def _plan(self, scheduler: BackgroundScheduler) -> None:
        """Keep a job of the same line, whose time may have passed meanwhile; replace or drop another."""
        kept = scheduler.get_job(JOB)
        if not self.cron:
            if kept:
                scheduler.remove_job(JOB)
            return
        trigger = _trigger(self.cron)
        if kept and kept.args == (self._store, self.cron):
            return
        scheduler.add_job(_call, trigger, args=(self._store, self.cron), id=JOB, replace_existing=True)

    def _check_labels(self) -> None:
        """Due when there are enough that no run has gone through, and that were not there at the last attempt."""
        if not self.after_labels:
            return
        try:
            new = self._new_labels()
        except Exception:  # a study store that is away for a moment
            log.warning("new labels could not be counted", exc_info=True)
            return
        num_untried = sum(self._tried.get(image) != of for image, of in new.items())
        if num_untried >= self.after_labels and self._due():
            self._tried = dict(new)

    def _due(self) -> bool:
        try:
            return self._on_due()
        except Exception:
            log.exception("a retraining could not be started")
            return False


def _call(store: str, cron: str) -> None:
    due = _DUE.get(store)
    if due is not None:
        due()


def _trigger(line: str) -> CronTrigger:
    fields = line.split()
    expected = 'expected five cron fields (minute hour day month weekday) such as "0 2 * * *"'
    if len(fields) != 5:
        raise ValueError(f"got {line!r}, {expected}")
    try:
        minute, hour, day, month, weekday = fields
        weekday = re.sub(r"\b([0-7])-([0-7])\b", _each_day, weekday)
        weekday = re.sub(r"(?<![/\d])[0-7](?!\d)", lambda m: _WEEKDAYS[int(m[0]) % 7], weekday)  # here 0 is a Monday
        return CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=weekday)
    except (ValueError, TypeError) as error:
        raise ValueError(f"got {line!r}, {expected}: {error}") from error


def _each_day(days: re.Match[str]) -> str:
    """A range in full: cron's weeks begin on another day than the scheduler's."""
    first, last = int(days[1]), int(days[2])
    if first > last:
        raise ValueError(f"weekdays {days[0]} run backwards")
    return ",".join(str(day) for day in range(first, last + 1))
