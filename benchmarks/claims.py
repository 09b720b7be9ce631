"""Claims of a benchmark: one line each beside its goal, and one row that says where it was measured."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Claim:
    """One figure and what it should be.

    Attributes:
        name: what was measured, unit included.
        value: what was seen; NaN where it could not be measured here.
        goal: the bound.
        at_least: whether the goal is a lower bound; otherwise an upper one.
        beside: what to compare with (floor, rival, arithmetic), for the reader only.
    """

    name: str
    value: float
    goal: float
    at_least: bool = True
    beside: str = ""

    @property
    def bound(self) -> str:
        return ">=" if self.at_least else "<="

    @property
    def holds(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def __str__(self) -> str:
        beside = f", {self.beside}" if self.beside else ""
        verdict = "ok" if self.holds else "falls short"
        return f"{self.name}: {self.value:.4g} (goal {self.bound} {self.goal:.4g}{beside}) {verdict}"


def report(table: str, claims: Iterable[Claim], keep_others: bool = False) -> int:
    """Print each claim as it comes, write ``results/<table>.csv``; the exit code: 1 if any falls short.

    Args:
        keep_others: rows of claims not measured now stay, with the commit they were measured at.
    """
    seen = []
    for claim in claims:
        print(claim, flush=True)
        seen.append(claim)
    write_results(table, seen, keep_others)
    return int(not all(claim.holds for claim in seen))


def write_results(table: str, claims: Sequence[Claim], keep_others: bool = False) -> None:
    facts = where()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{table}.csv"
    names = {c.name for c in claims}
    others = [row for row in _rows(path) if row[0] not in names] if keep_others else []
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["claim", "value", "bound", "goal", "holds", "beside", *facts])
        rows.writerows(others)
        for c in claims:
            rows.writerow([c.name, f"{c.value:.6g}", c.bound, f"{c.goal:.6g}", c.holds, c.beside, *facts.values()])


def _rows(path: Path) -> list[list[str]]:
    """Without the head; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def where() -> dict[str, str]:
    """Commit, device and versions: a figure without them is nobody's."""
    described = _git("describe", "--always")
    is_changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    commit = described + "-dirty" * bool(is_changed)
    return {
        "commit": commit or "unknown",
        "device": f"{_processor()} x{os.cpu_count()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent, check=False).stdout.strip()


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
