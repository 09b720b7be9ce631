"""One retraining as a page for people: the verdict, the curve, every group, and the labels that were set aside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")  # files only; a server has no screen
from matplotlib import pyplot as plt

from imis_net.overlay import draw_overlay
from imis_net.retraining.cycle import Outcome
from imis_net.retraining.gate import MARGIN_DICE, GroupVerdict, TargetKey, TargetVerdict
from imis_net.training.dataset import Record
from imis_net.training.finetune import Progress

THUMBNAIL_PX = 256
MAX_NUM_PICTURES = 40

_PAGE = """<!doctype html><meta charset=utf-8><title>Retraining: {state}</title>
<style>body{{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:left}}
.bad{{color:#b00020}}figure{{display:inline-block;margin:.5rem;max-width:16rem;vertical-align:top}}
.wide figure{{max-width:none}}.wide img{{max-width:100%}}</style>
<h1>Retraining: {state}</h1><p>{reason}</p>{facts}{curve}{groups}{worst}{quarantine}"""


Masks = Mapping[TargetKey, np.ndarray]


def render(
    outcome: Outcome, progress: Sequence[Progress], pictured: Mapping[str, Record], answers: tuple[Masks, ...] = ()
) -> str:
    """A page that needs no other file.

    Args:
        pictured: the records of the cases to show, by name.
        answers: what production and what the candidate answered to the boxes of the worst targets, bool [H, W].
    """
    return _PAGE.format(
        state=html.escape(outcome.state),
        reason=html.escape(outcome.reason),
        facts=_facts(outcome),
        curve=_curve(progress),
        groups=_groups(outcome),
        worst=_worst(outcome, pictured, answers),
        quarantine=_quarantine(outcome, pictured),
    )


def _facts(outcome: Outcome) -> str:
    rows = {
        "weights before": outcome.production[:16],
        "candidate": outcome.candidate[:16] or "none",
        **{f"{split} slices": number for split, number in outcome.num_slices.items()},
        **{f"{split} patients": number for split, number in outcome.num_patients.items()},
    }
    if outcome.tuned is not None:
        rows["validation Dice"] = f"{outcome.tuned.start_dice:.3f} to {outcome.tuned.best_dice:.3f}"
        rows["steps"] = f"{outcome.tuned.num_steps} in {outcome.tuned.seconds:.0f} s, ended by {outcome.tuned.ended_by}"
    return _table([[name, str(value)] for name, value in rows.items()])


def _curve(progress: Sequence[Progress]) -> str:
    if not progress:
        return ""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    steps = [p.step for p in progress]
    axes.plot(steps, [p.best_dice for p in progress], label="best validation")
    axes.plot(steps, [p.round_dices[-1] if p.round_dices else np.nan for p in progress], lw=0.6, label="training step")
    axes.set(xlabel="step", ylabel="Dice", ylim=(0, 1))
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    plt.close(figure)
    return f"<h2>Curve</h2>{_image(file.getvalue())}"


def _groups(outcome: Outcome) -> str:
    if outcome.verdict is None or not outcome.verdict.groups:
        return ""
    head = "<tr><th>group<th>targets<th>before<th>candidate<th>difference, 95 %"
    rows = "".join(_group(g) for g in sorted(outcome.verdict.groups, key=lambda g: g.low))
    note = f"A group passes when its difference is surely above {-MARGIN_DICE:+.2f} Dice; the worst come first."
    return f"<h2>Gate</h2><p>{note}</p><table>{head}{rows}</table>"


def _group(g: GroupVerdict) -> str:
    cells = (g.group, g.num_targets, f"{g.production:.3f}", f"{g.candidate:.3f}", f"{g.low:+.3f} to {g.high:+.3f}")
    look = "" if g.passes else " class=bad"
    return f"<tr{look}>" + "".join(f"<td>{html.escape(str(cell))}" for cell in cells)


def worst_records(outcome: Outcome, pictured: Mapping[str, Record]) -> list[Record]:
    """The records that hold the worst targets, as far as they are there."""
    cases = dict.fromkeys(t.case for t in outcome.verdict.worst) if outcome.verdict else {}
    return [pictured[case] for case in cases if case in pictured]


def _worst(outcome: Outcome, pictured: Mapping[str, Record], answers: tuple[Masks, ...]) -> str:
    if outcome.verdict is None or not outcome.verdict.worst:
        return ""
    figures = [_figure(_target_picture(pictured.get(t.case), t, answers), _about(t)) for t in outcome.verdict.worst]
    note = (
        "Reference targets that the candidate answers worst, by mean Dice over all prompts. From the left: as people "
        "labelled them; and in a box, as production and as the candidate answer."
    )
    return f"<h2>Worst cases</h2><p>{note}</p><div class=wide>{''.join(figures)}</div>"


def _about(t: TargetVerdict) -> str:
    return f"{t.case}: {t.label or 'no name'}: {t.production:.3f} before, {t.candidate:.3f} by the candidate"


def _target_picture(record: Record | None, target: TargetVerdict, answers: tuple[Masks, ...]) -> bytes:
    """b"" where the label is gone, or has other targets by now."""
    if record is None:
        return b""
    truths = [mask for _, mask in record.masks()]
    if target.target >= len(truths):
        return b""
    key = target.case, target.target
    return _picture(record.image, truths[target.target], *(masks[key] for masks in answers if key in masks))


def _quarantine(outcome: Outcome, pictured: Mapping[str, Record]) -> str:
    if not outcome.findings:
        return ""
    figures = []
    for number, finding in enumerate(outcome.findings):
        record = pictured.get(finding.case) if number < MAX_NUM_PICTURES else None
        picture = b"" if record is None else label_picture(record)
        figures.append(_figure(picture, f"{finding.case}: {finding.rule}: {finding.reason}"))
    return f"<h2>Labels set aside ({len(outcome.findings)})</h2>{''.join(figures)}"


def _figure(png: bytes, about: str) -> str:
    return f"<figure>{_image(png) if png else ''}<figcaption>{html.escape(about)}</figcaption></figure>"


def label_picture(record: Record) -> bytes:
    """The slice with its label as a small PNG; the slice alone where the label has another size."""
    return _picture(record.image, record.targets[0][0] > 0)


def _picture(image: np.ndarray, *masks: np.ndarray) -> bytes:
    """The image with each of the masks, side by side: a PNG."""
    fitting = [mask if mask.shape == image.shape[:2] else None for mask in masks]
    panels = [Image.fromarray(draw_overlay(image, mask)) for mask in fitting]
    for panel in panels:
        panel.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    Image.fromarray(np.concatenate([np.asarray(panel) for panel in panels], axis=1)).save(file, "PNG")
    return file.getvalue()


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<table>{''.join(lines)}</table>"
