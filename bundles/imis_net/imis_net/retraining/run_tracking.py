"""A retraining in MLflow, for those who look after models there: its curve, its verdict, its report and its version."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from imis_net.mlflow_run import MlflowRun
from imis_net.retraining.cycle import Outcome
from imis_net.retraining.registry import ModelRegistry
from imis_net.training.finetune import Progress

log = logging.getLogger(__name__)

EXPERIMENT = "retraining"


def track(root: Path, model: str, outcome: Outcome, progress: Sequence[Progress], report: Path | None) -> None:
    """Write the run down in ``root/mlflow.db``; a store that fails is logged and changes nothing else.

    Args:
        model: the builder's name, under which MLflow counts the versions.
        report: the page to keep with it; a run that failed has none.
    """
    try:
        run, finished = MlflowRun(root, EXPERIMENT), False
        try:
            _write(run, root, model, outcome, progress, report)
            finished = outcome.state not in ("stopped", "failed")
        finally:  # a run that is left open looks as if it went on for ever
            run.close(finished)
    except Exception as error:  # what is published is published, whoever keeps the books
        log.warning("this retraining is not in MLflow: %s: %s", type(error).__name__, error)


def _write(
    run: MlflowRun, root: Path, model: str, outcome: Outcome, progress: Sequence[Progress], report: Path | None
) -> None:
    facts = {"state": outcome.state, "reason": outcome.reason}
    run.describe({**facts, "production": outcome.production, "candidate": outcome.candidate})
    for step, dice in _gains(progress):
        run.log(step, {"validation/best_dice": dice})
    run.log(0, {f"slices/{split}": float(number) for split, number in outcome.num_slices.items()})
    for group in outcome.verdict.groups if outcome.verdict else ():
        values = {
            "production": group.production,
            "candidate": group.candidate,
            "difference_low": group.low,
            "difference_high": group.high,
        }
        run.log(0, {f"gate/{_plain(group.group)}/{what}": value for what, value in values.items()})
    if report:
        run.keep(report)
    if outcome.candidate:
        weights = ModelRegistry(root / "registry").weights(outcome.candidate)
        run.add_model(model, weights, {"digest": outcome.candidate, **facts})


def _gains(progress: Sequence[Progress]) -> Iterator[tuple[int, float]]:
    """The steps at which the best Dice rose."""
    best = -1.0
    for p in progress:
        if p.best_dice > best:
            best = p.best_dice
            yield p.step, best


def _plain(name: str) -> str:
    """MLflow names metrics in letters, digits and _-./ or space; "label:liver" becomes a folder and a name."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name.replace(":", "/"))
