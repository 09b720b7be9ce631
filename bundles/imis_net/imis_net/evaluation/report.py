"""Scores to tables and pictures: records.csv, summary.csv, summary.md and plots."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only; a server has no screen
from matplotlib import pyplot as plt

from imis_net.evaluation.bootstrap import mean_interval
from imis_net.evaluation.cost import Cost
from imis_net.evaluation.harness import Score

MAX_NUM_CLICKS = 20
"""RITM's limit (arXiv 2102.06583): a target that never gets there counts as this many clicks."""
NOC_TARGETS = (0.80, 0.85, 0.90)
NUM_RESAMPLES = 1000
SUMMARY_COLUMNS = (
    *("level", "group", "strategy", "round", "num_masks", "dice", "dice_low", "dice_high", "nsd"),
    *(f"noc{round(100 * t)}" for t in NOC_TARGETS),
)
Row = dict[str, object]


def write_records(scores: Iterable[Score], path: Path) -> None:
    """One row per mask and round; the same seed gives the same bytes but for ``milliseconds``."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Score)])
        writer.writeheader()
        for score in scores:
            rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(score).items()}
            writer.writerow(rounded)


def summarise(scores: Sequence[Score], seed: int = 0) -> list[Row]:
    """Means by level, group and round, with 95 % bootstrap intervals.

    Level ``mask`` averages over masks (the paper's second table), level ``image`` over the images' means (its first).
    NoC counts prompts as clicks, to an IoU as RITM does, and stands with every round of its group.
    """
    groups: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        for group in ("all", f"modality:{score.modality}", f"source:{score.source}", f"label:{score.label}"):
            groups[group, score.strategy].append(score)
    rows = []
    for (group, strategy), members in groups.items():
        noc = number_of_clicks(members)
        by_round: dict[int, list[Score]] = defaultdict(list)
        for score in members:
            by_round[score.round].append(score)
        for level in ("mask", "image"):
            for number, of_round in sorted(by_round.items()):
                values = _by_level(of_round, level)
                low, high = mean_interval(values, np.random.default_rng(seed), NUM_RESAMPLES)
                facts: Row = {
                    "level": level,
                    "group": group,
                    "strategy": strategy,
                    "round": number,
                    "num_masks": len(of_round),
                    "dice": round(float(values.mean()), 4),
                    "dice_low": round(low, 4),
                    "dice_high": round(high, 4),
                    "nsd": round(float(np.mean([s.nsd for s in of_round])), 4),
                }
                rows.append(facts | {f"noc{round(100 * t)}": round(v, 3) for t, v in noc.items()})
    return rows


def number_of_clicks(scores: Iterable[Score]) -> dict[float, float]:
    """Mean number of prompts until the IoU reaches each of ``NOC_TARGETS``, at most 20."""
    rounds: dict[tuple[str, int], list[Score]] = defaultdict(list)
    for score in scores:
        rounds[score.case, score.target].append(score)
    return {
        target: float(
            np.mean(
                [min((s.round + 1 for s in own if s.iou >= target), default=MAX_NUM_CLICKS) for own in rounds.values()]
            )
        )
        for target in NOC_TARGETS
    }


def area_under_rounds(dice_by_round: Sequence[float]) -> float:
    """Mean height of the Dice curve over rounds (trapezoids), 0 to 1; a single round is its own area."""
    values = np.asarray(dice_by_round, float)
    return float(values[0]) if len(values) == 1 else float(((values[1:] + values[:-1]) / 2).mean())


def write_summary(rows: Sequence[Row], folder: Path, title: str, cost: Cost | None = None) -> None:
    """summary.csv with every group, summary.md with the overall ones."""
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, SUMMARY_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [f"# {title}", ""]
    if cost is not None:
        lines += [f"Cost: {cost}.", ""]
    for level in ("image", "mask"):
        lines += [f"## {level.capitalize()} level", ""]
        lines += ["| group | strategy | round | masks | Dice (95 %) | NSD 2 px | NoC@80 | NoC@85 | NoC@90 |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        shown = [r for r in rows if r["level"] == level and not str(r["group"]).startswith("label:")]
        lines += [_markdown(row) for row in shown]
        overall = [float(str(r["dice"])) for r in shown if r["group"] == "all"]
        lines += ["", f"Area under the rounds, all: {area_under_rounds(overall):.4f}", ""]
    (folder / "summary.md").write_text("\n".join(lines))


def plot(scores: Sequence[Score], folder: Path) -> None:
    """dice_by_round.png and dice_by_size.png."""
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    by_round: Mapping[int, list[float]] = defaultdict(list)
    for score in scores:
        by_round[score.round].append(score.dice)
    axes.plot(list(by_round), [np.mean(v) for v in by_round.values()], "o-")
    axes.set(xlabel="round", ylabel="mean Dice", ylim=(0, 1), title="Dice by round")
    figure.savefig(folder / "dice_by_round.png", dpi=120)
    plt.close(figure)
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    last = max(by_round)
    shown = [s for s in scores if s.round == last]
    axes.scatter([s.num_pixels for s in shown], [s.dice for s in shown], s=8, alpha=0.5)
    axes.set(xlabel="target size (px)", ylabel="Dice", xscale="log", ylim=(0, 1), title=f"Dice by size, round {last}")
    figure.savefig(folder / "dice_by_size.png", dpi=120)
    plt.close(figure)


def _by_level(scores: Sequence[Score], level: str) -> np.ndarray:
    if level == "mask":
        return np.array([s.dice for s in scores])
    images: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        images[score.case].append(score.dice)
    return np.array([np.mean(v) for v in images.values()])


def _markdown(row: Row) -> str:
    dice_text = f"{row['dice']:.3f} ({row['dice_low']:.3f} to {row['dice_high']:.3f})"
    noc = " | ".join(f"{row[f'noc{round(100 * t)}']:.2f}" for t in NOC_TARGETS)
    facts = " | ".join(str(row[k]) for k in ("group", "strategy", "round", "num_masks"))
    return f"| {facts} | {dice_text} | {row['nsd']:.3f} | {noc} |"
