"""When to retrain: cron lines, label counts, restarts, and two servers on one store."""

import os
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

import imis_net
from imis_net.retraining.schedule import JOB, RetrainingSchedule, _trigger, check_cron


def wait_for(holds, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds())


@pytest.mark.parametrize(
    "line", ["", "0 2 * *", "61 2 * * *", "at two", "0 2 * * 9", "0 2 * * 5-1", "0 2 31 * * *", "0 2 * * $"]
)
def test_a_line_that_does_not_parse_says_what_was_expected(line):
    """Breaks if a typing mistake is found out at night, when nothing happens."""
    with pytest.raises(ValueError, match="expected five cron fields"):
        check_cron(line)


def test_weekdays_are_counted_as_cron_counts_them():
    """Breaks if Sunday's run comes on a Monday, where the scheduler begins its week."""
    sunday = datetime(2026, 11, 22, 2)
    for line in ("0 2 * * 0", "0 2 * * 7", "0 2 * * sun"):
        assert _trigger(line).get_next_fire_time(None, sunday.astimezone()).weekday() == 6
    fires, at = set(), sunday.astimezone()
    for _ in range(5):
        at = _trigger("0 2 * * 1-5").get_next_fire_time(at, at + timedelta(seconds=1))
        fires.add(at.weekday())
    assert fires == {0, 1, 2, 3, 4}


def make_due(root) -> None:
    """As if the server had been down for three nights."""
    scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(f"sqlite:///{root / 'schedule.sqlite'}")})
    scheduler.start(paused=True)
    scheduler.modify_job(JOB, next_run_time=datetime.now().astimezone() - timedelta(days=3))
    # Never resumed nor shut down: at its end it would take the job for itself.


def test_missed_runs_are_caught_up_once(tmp_path):
    """Breaks if a restart forgets the schedule, or makes up for each of the nights."""
    fired: list[int] = []
    for start in range(3):
        schedule = RetrainingSchedule(tmp_path, "0 2 * * *", 0, dict, lambda n=start: fired.append(n) is None)
        schedule.start()
        assert wait_for(schedule.next_run)
        if start == 1:
            assert wait_for(lambda: fired)
        time.sleep(0.3)
        schedule.stop()
        if start == 0:
            make_due(tmp_path)
    assert fired == [1]


def test_another_line_replaces_the_kept_one(tmp_path):
    """Breaks if a changed or dropped --conf retrain goes on at the old time."""
    seen = []
    for line in ("0 2 * * *", "30 4 * * *", ""):
        schedule = RetrainingSchedule(tmp_path, line, 0, dict, lambda: True)
        schedule.start()
        wait_for(lambda s=schedule: s.next_run() or (not s.cron and s.is_leader and s._scheduler))
        seen.append(schedule.next_run()[11:16])
        schedule.stop()
    assert seen == ["02:00", "04:30", ""]
    kept = sqlite3.connect(tmp_path / "schedule.sqlite").execute("select count(*) from apscheduler_jobs")
    assert kept.fetchone()[0] == 0


def test_enough_new_labels_fire_once(tmp_path):
    """Breaks if the count never fires, fires at each look until a run is through, or misses labels drawn anew."""
    new, fired = [{}], []
    schedule = RetrainingSchedule(tmp_path, "", 3, lambda: new[0], lambda: fired.append(len(new[0])) is None, 0.02)
    schedule.start()
    steps = [("a1 b1", 0), ("a1 b1 c1", 1), ("a1 b1 c1 d1", 1), ("a1 b1 c1 d1 e1 f1", 2), ("", 2), ("a2 b2 c2", 3)]
    for labels, num_fired in steps:
        new[0] = {label[0]: label[1] for label in labels.split()}
        wait_for(lambda n=num_fired: len(fired) == n, 2)
        time.sleep(0.15)
        assert len(fired) == num_fired, labels
    schedule.stop()
    assert fired == [3, 6, 3]


def test_labels_that_come_while_one_runs_are_not_forgotten(tmp_path):
    """Breaks if a batch that arrives before the last run's process has ended is never learnt from."""
    is_running, asked = [True], []

    def start() -> bool:
        asked.append(not is_running[0])
        return not is_running[0]

    schedule = RetrainingSchedule(tmp_path, "", 1, lambda: {"a": "1"}, start, 0.02)
    schedule.start()
    assert wait_for(lambda: len(asked) > 3)
    is_running[0] = False
    assert wait_for(lambda: any(asked))
    time.sleep(0.3)
    schedule.stop()
    assert asked.count(True) == 1


SERVER = """
import sys, time
from pathlib import Path
from imis_net.retraining.schedule import RetrainingSchedule
due = lambda: Path(sys.argv[2]).touch() is None
RetrainingSchedule(Path(sys.argv[1]), "0 2 * * *", 1, lambda: {"a": "1"}, due, 0.05).start()
time.sleep(120)
"""


def test_of_two_servers_one_leads_and_the_other_takes_over(tmp_path):
    """Breaks if two server processes on one store both fire, or none does once the first is killed."""
    bundle = str(Path(imis_net.__file__).parents[1])
    start = lambda name: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", SERVER, str(tmp_path), str(tmp_path / name)], env={**os.environ, "PYTHONPATH": bundle}
    )
    first = start("first")
    try:
        assert wait_for((tmp_path / "first").exists, 60)
        second = start("second")
        try:
            time.sleep(3)
            assert not (tmp_path / "second").exists()
            first.kill()
            assert wait_for((tmp_path / "second").exists, 60)
        finally:
            second.kill()
            second.wait()
    finally:
        first.kill()
        first.wait()
