"""Proposed names of a finished data set's unnamed masks, calibrated on its own named ones, written into its records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imis_net.data_engine.assembly import read_records
from imis_net.data_engine.layout import Record, write_record
from imis_net.data_engine.semantics import Calibration, Guess, Named, Precision, precision_on_others
from imis_net.data_engine.settings import SemanticsSettings


def propose_names(out: Path, run_digest: str, settings: SemanticsSettings) -> Precision:
    """Give each unnamed mask a ``proposal``: a name or "unknown", and a confidence.

    Names that the network cannot know count as well: a guess at such a mask is wrong.

    Raises:
        OSError: cannot be written.
    """
    named: list[Named] = []
    for record in _of_run(out, run_digest):
        known = (m for m in record["masks"] if m["name"] is not None and "guess" in m)
        named += [Named(Guess(*m["guess"]), m["name"], record["patient"]) for m in known]
    calibration = Calibration(named, settings)
    for record in _of_run(out, run_digest):
        if _add_proposals(record, calibration):
            write_record(out, record)
    return precision_on_others(named, settings)


def _add_proposals(record: Record, calibration: Calibration) -> bool:
    """Whether any is new."""
    is_new = False
    for mask in record["masks"]:
        if mask["name"] is None and "guess" in mask:
            proposal = calibration.propose(Guess(*mask["guess"]))
            facts = {"name": proposal.name, "confidence": round(proposal.confidence, 4)}
            is_new |= mask.get("proposal") != facts
            mask["proposal"] = facts
    return is_new


def _of_run(out: Path, run_digest: str) -> Iterator[Record]:
    return (r for r in read_records(out) if r["run"] == run_digest)
