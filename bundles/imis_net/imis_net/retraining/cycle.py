"""One retraining from labels to a verdict: check, split, learn, judge, publish. Nothing half-done is ever served.

    ROOT/registry, ROOT/ledger    see those modules
    ROOT/runs/<time>/             report.html, outcome.json and the quarantined labels of one run
    ROOT/run.lock                 held while one runs, by whichever process it is

A run killed anywhere leaves the registry, the ledger and production as they were or as they should be; the next one
starts from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from imis_net.checkpoint import sha256
from imis_net.errors import CheckpointError, DatasetError
from imis_net.evaluation.harness import Score
from imis_net.files import write_durably
from imis_net.retraining.gate import Verdict, judge
from imis_net.retraining.label_checks import Finding, LabelledImage, check_labels
from imis_net.retraining.ledger import Ledger
from imis_net.retraining.registry import ModelRegistry
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuned

Train = Callable[[Path, Sequence[Record], Sequence[Record], Path], FineTuned]
"""(start weights, to learn from, to validate on, where the candidate goes)."""
Answers = Callable[[Path, Sequence[Record]], list[Score]]
"""(weights, reference slices) -> what they answer; the same prompts for every weights."""


@dataclass(frozen=True)
class Labels:
    """What people labelled, slice by slice: to learn from, and marked as reference."""

    learning: Sequence[Record]
    reference: Sequence[Record] = ()
    unreadable: Sequence[Finding] = ()


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: ``published``; ``kept`` when the gate refused or nothing was gained; ``stopped``; ``failed``.
        reason: one sentence for people.
        production: digest of what was served when it began, "" where nothing was ever published.
    """

    state: str
    reason: str
    production: str = ""
    candidate: str = ""
    verdict: Verdict | None = None
    tuned: FineTuned | None = None
    findings: tuple[Finding, ...] = ()
    num_slices: dict[str, int] = field(default_factory=dict)
    num_patients: dict[str, int] = field(default_factory=dict)


class RetrainingCycle:
    """The parts of a deployment's retraining, which stays below ``root``."""

    def __init__(self, root: Path, train: Train, answers: Answers) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self.registry = ModelRegistry(self.root / "registry")
        self.train, self.answers = train, answers
        self._lock = FileLock(self.root / "run.lock")

    def run(self, base: Path, labels: Labels) -> Outcome:
        """One retraining; ``base`` are the weights that the deployment was set up with.

        Raises:
            DatasetError: labels that nothing can be learnt from; another retraining runs.
            CheckpointError: the base weights were never kept and are gone.
            OSError: the disk is full. Production is as it was in each case.
        """
        try:
            with self._lock.acquire(timeout=0):
                return self._run(base, labels)
        except Timeout as error:
            raise DatasetError("another retraining runs on these studies; this one has done nothing") from error

    def _run(self, base: Path, labels: Labels) -> Outcome:
        ledger = Ledger(self.root / "ledger")
        reference, of_reference = checked(labels.reference)
        refused = ledger.admit(reference)
        learning, of_learning = checked(labels.learning)
        training, validation = ledger.divide(learning)
        judges = ledger.references()
        outcome = Outcome(
            "",
            "",
            findings=(*labels.unreadable, *of_reference, *refused, *of_learning),
            num_slices={"training": len(training), "validation": len(validation), "reference": len(judges)},
            num_patients=ledger.counts(),
        )
        _check_enough(training, validation, outcome)
        production = adopt(self.registry, base)
        return self._learn(replace(outcome, production=production), training, validation, judges)

    def _learn(
        self, outcome: Outcome, training: Sequence[Record], validation: Sequence[Record], judges: Sequence[Record]
    ) -> Outcome:
        weights = self.registry.weights(outcome.production)
        draft = self.root / "candidate.safetensors"
        try:
            tuned = self.train(weights, training, validation, draft)
            outcome = replace(outcome, tuned=tuned)
            if tuned.ended_by == "stop":
                return replace(outcome, state="stopped", reason="stopped before it was done")
            if tuned.best_dice <= tuned.start_dice:
                return replace(outcome, state="kept", reason="validation did not improve; there is no candidate")
            verdict = judge(self.answers(weights, judges), self.answers(draft, judges))
            return self._decide(replace(outcome, verdict=verdict), verdict, draft)
        finally:
            draft.unlink(missing_ok=True)

    def _decide(self, outcome: Outcome, verdict: Verdict, draft: Path) -> Outcome:
        base = self.registry.facts(outcome.production).get("base", outcome.production)
        facts = {"base": base, "start": outcome.production, "passes": verdict.passes, "reason": verdict.reason}
        candidate = self.registry.add(draft, facts | {"num_slices": outcome.num_slices})
        if verdict.passes:
            self.registry.publish(candidate, verdict.reason)
        return replace(
            outcome,
            state="published" if verdict.passes else "kept",
            reason=verdict.reason,
            candidate=candidate,
        )

    def keep_report(self, outcome: Outcome, html: str) -> Path:
        """``runs/<time>/``: report.html for people, outcome.json for programs."""
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
        folder = self.root / "runs" / stamp
        folder.mkdir(parents=True)
        write_durably(folder / "report.html", html.encode())
        facts = {
            "state": outcome.state,
            "reason": outcome.reason,
            "production": outcome.production,
            "candidate": outcome.candidate,
            "num_slices": outcome.num_slices,
            "num_quarantined": len(outcome.findings),
            "dice": None if outcome.tuned is None else [outcome.tuned.start_dice, outcome.tuned.best_dice],
        }
        write_durably(folder / "outcome.json", json.dumps(facts, indent=1).encode())
        return folder


def adopt(registry: ModelRegistry, base: Path) -> str:
    """The digest of what is served; the deployment's own weights become a version, as do new ones of its operator.

    Raises:
        CheckpointError: nothing was ever published and the file is gone.
    """
    served = registry.current()
    if not base.is_file():
        if served is None:
            raise CheckpointError(f"no weights to start from: {base.name} is gone, and no version was kept yet")
        return served.digest
    if served is not None and sha256(base) in (served.digest, registry.facts(served.digest).get("base")):
        return served.digest
    reason = "the weights that the deployment was set up with"
    return registry.publish(registry.add(base, {"reason": reason}), reason).digest


def checked(records: Sequence[Record]) -> tuple[list[Record], list[Finding]]:
    """The records whose labels are fit, and why the others are not."""
    items = [LabelledImage(r.case, r.patient, r.image, *r.targets[0]) for r in records]
    fit, findings = check_labels(items)
    kept = {item.case for item in fit}
    return [r for r in records if r.case in kept], findings


def _check_enough(training: Sequence[Record], validation: Sequence[Record], outcome: Outcome) -> None:
    if training and validation:
        return
    quarantined = f"; {len(outcome.findings)} were quarantined" if outcome.findings else ""
    if not training and not validation:
        raise DatasetError(f"no label to learn from: expected some marked final, got none that is fit{quarantined}")
    raise DatasetError(
        "labels of one patient only: expected at least two patients, one to learn from and one to validate on"
        f"{quarantined}"
    )
