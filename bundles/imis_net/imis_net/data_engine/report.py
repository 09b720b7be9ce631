"""How good the made data set is: report.html, images.csv, masks.csv and a contact sheet of its worst images."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imis_net.data_engine.assembly import read_index, write_rows
from imis_net.data_engine.ingest import Reject
from imis_net.data_engine.layout import Record
from imis_net.data_engine.names import category_of
from imis_net.data_engine.semantics import UNKNOWN, Precision
from imis_net.data_engine.settings import ReportSettings
from imis_net.files import write_atomically

THUMB_PX = 256
NUM_COLUMNS = 5
FONT_PX = 12
MASK_COLUMNS = (
    *("stem", "id", "name", "category", "proposal", "confidence", "origin", "score", "area_px", "visible_px"),
    *("agreement", "provenance"),
)


@dataclass(frozen=True)
class ImageFacts:
    """One image in numbers.

    Attributes:
        coverage: fraction of its pixels in any mask.
        agreement: mean over its targets of the best generated mask's IoU; NaN without targets.
    """

    stem: str
    modality: str
    num_masks: int
    num_targets: int
    num_generated: int
    coverage: float
    agreement: float


def write_report(out: Path, settings: ReportSettings, rejects: Sequence[Reject], names: Precision) -> str:
    """Write the report beside the data set; returns its summary in one line.

    Args:
        names: how often a proposed name is right.

    Raises:
        OSError: cannot be written.
    """
    facts: list[ImageFacts] = []
    mask_rows: list[Sequence[object]] = []
    for record in read_index(out):
        facts.append(_facts(out, record))
        mask_rows.extend(_mask_rows(record))
    rows = [[f.stem, f.modality, f.num_masks, f.num_targets, f.num_generated, *_rounded(f)] for f in facts]
    columns = ["stem", "modality", "num_masks", "num_targets", "num_generated", "coverage", "agreement"]
    write_rows(out / "images.csv", columns, rows)
    write_rows(out / "masks.csv", MASK_COLUMNS, mask_rows)
    worst = sorted(facts, key=lambda f: (np.nan_to_num(f.agreement, nan=1.0), f.num_masks, f.stem))
    worst = worst[: settings.num_worst]
    if worst:
        write_atomically(out / "worst.jpg", contact_sheet(out, worst))
    verdicts = poor_because(facts, len(rejects), settings)
    page = _page(facts, worst, rejects, verdicts) + _names(out, mask_rows, names)
    write_atomically(out / "report.html", page.encode())
    return summary(facts, rejects, verdicts)


def poor_because(facts: Sequence[ImageFacts], num_rejects: int, settings: ReportSettings) -> list[str]:
    """Why a data set should be looked at before it is used; empty for a good one."""
    if not facts:
        return ["no image is left"]
    reasons = []
    masks, agreement = _mean([f.num_masks for f in facts]), _mean([f.agreement for f in facts])
    lost = num_rejects / (num_rejects + len(facts))
    if masks < settings.min_masks_per_image:
        reasons.append(f"{masks:.1f} masks per image, expected {settings.min_masks_per_image:g} or more")
    if agreement < settings.min_agreement:
        reasons.append(f"agreement with the truth {agreement:.2f}, expected {settings.min_agreement:g} or more")
    if lost > settings.max_rejected_fraction:
        reasons.append(f"{lost:.0%} left out, expected {settings.max_rejected_fraction:.0%} or less")
    return reasons


def summary(facts: Sequence[ImageFacts], rejects: Sequence[Reject], verdicts: Sequence[str]) -> str:
    return (
        f"{len(facts)} images, {_mean([f.num_masks for f in facts]):.1f} masks per image "
        f"({_mean([f.num_generated for f in facts]):.1f} generated), "
        f"coverage {_mean([f.coverage for f in facts]):.2f}, "
        f"agreement with the truth {_mean([f.agreement for f in facts]):.2f}, {len(rejects)} left out"
        + (f"; poor: {'; '.join(verdicts)}" if verdicts else "")
    )


def contact_sheet(out: Path, images: Sequence[ImageFacts]) -> bytes:
    """JPEG: each image with its masks' outlines, generated yellow, ground truth green."""
    num_rows = -(-len(images) // NUM_COLUMNS)
    sheet = Image.new("RGB", (NUM_COLUMNS * THUMB_PX, num_rows * (THUMB_PX + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    by_stem = {f.stem: i for i, f in enumerate(images)}
    for record in read_index(out):
        if (i := by_stem.get(record["stem"])) is not None:
            x, y = i % NUM_COLUMNS * THUMB_PX, i // NUM_COLUMNS * (THUMB_PX + 16)
            sheet.paste(outlined(out, record).resize((THUMB_PX, THUMB_PX)), (x, y + 16))
            label = f"{record['stem'][-24:]}  {images[i].agreement:.2f}  {images[i].num_masks}"
            draw.text((x + 2, y + 1), label, fill="black", font=ImageFont.load_default(FONT_PX))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def outlined(out: Path, record: Record) -> Image.Image:
    image = np.asarray(Image.open(out / record["image"]).convert("RGB")).copy()
    ids = np.load(out / record["imask"])[:, :, 0]
    is_truth = np.array([False, *(m["origin"] == "ground_truth" for m in record["masks"])])[ids]
    image[_between(ids, np.ones_like(is_truth))] = (255, 210, 0)
    image[_between(ids, is_truth)] = (40, 220, 90)
    return Image.fromarray(image)


def _between(ids: np.ndarray, matters: np.ndarray) -> np.ndarray:
    """Where an id differs from the one above or to the left and one of the two matters."""
    edges = np.zeros(ids.shape, bool)
    edges[1:] |= (ids[1:] != ids[:-1]) & (matters[1:] | matters[:-1])
    edges[:, 1:] |= (ids[:, 1:] != ids[:, :-1]) & (matters[:, 1:] | matters[:, :-1])
    return edges


def _facts(out: Path, record: Record) -> ImageFacts:
    masks = record["masks"]
    covered = sum(m["visible_px"] for m in masks) / (record["size"][0] * record["size"][1])
    agreements = [m["agreement"] for m in (*masks, *record["removed"]) if m["name"] is not None]
    return ImageFacts(
        record["stem"],
        record["modality"],
        len(masks),
        len(agreements),
        sum(m["origin"] == "generated" for m in masks),
        covered,
        _mean(agreements),
    )


def _mask_rows(record: Record) -> list[list[object]]:
    return [
        [
            record["stem"],
            m["id"],
            m["name"] or "",
            category_of(m["name"]) or "" if m["name"] else "",
            *(m["proposal"].values() if "proposal" in m else ("", "")),
            *(m[k] for k in ("origin", "score", "area_px", "visible_px")),
            "" if m["agreement"] is None else m["agreement"],
            "; ".join(f"{action} by {rule}: {value:g} ({bound:g})" for action, rule, value, bound in m["steps"]),
        ]
        for m in record["masks"]
    ]


def _page(
    facts: Sequence[ImageFacts], worst: Sequence[ImageFacts], rejects: Sequence[Reject], verdicts: Sequence[str]
) -> str:
    worst_rows = "".join(
        f"<tr><td>{html.escape(f.stem)}<td>{f.num_masks}<td>{f.coverage:.2f}<td>{f.agreement:.2f}" for f in worst
    )
    reject_rows = "".join(f"<tr><td>{html.escape(r.stem)}<td>{html.escape(r.reason)}" for r in rejects)
    verdict = "".join(f"<li>{html.escape(v)}" for v in verdicts) or "<li>nothing against its use"
    return (
        '<!doctype html><meta charset="utf-8"><title>Data set report</title>'
        "<style>body{font:15px sans-serif;margin:2em;max-width:1300px}td,th{padding:2px 12px 2px 0;text-align:left}"
        "img{max-width:100%}</style><h1>Data set report</h1>"
        f"<p>{html.escape(summary(facts, rejects, ()))}<h2>Verdict</h2><ul>{verdict}</ul>"
        "<h2>Worst images</h2><p>Least agreement first; ground truth outlined green, generated masks yellow; above "
        'each its agreement and number of masks.<p><img src="worst.jpg" alt="worst images">'
        f"<table><tr><th>image<th>masks<th>coverage<th>agreement{worst_rows}"
        f"</table><h2>Left out</h2><table><tr><th>image<th>reason{reject_rows}</table>"
    )


def _names(out: Path, mask_rows: Sequence[Sequence[object]], names: Precision) -> str:
    """What the data set's names are in the 204 categories, which are none of them, and what was proposed."""
    with (out / "classes.csv").open(newline="") as file:
        classes = [(row["class"], row["category"]) for row in csv.DictReader(file)]
    counts = Counter(row[MASK_COLUMNS.index("name")] for row in mask_rows)
    table = "".join(
        f"<tr><td>{html.escape(name)}<td>{html.escape(category) or 'none of the 204'}<td>{counts[name]}"
        for name, category in classes
    )
    proposed = Counter(p for row in mask_rows if (p := str(row[MASK_COLUMNS.index("proposal")])))
    told = ", ".join(f"{html.escape(n)} {k}" for n, k in proposed.most_common() if n != UNKNOWN) or "none"
    return (
        f"<h2>Names</h2><table><tr><th>class<th>category<th>masks{table}</table>"
        f"<p>Proposed for unnamed masks: {told}; unknown {proposed[UNKNOWN]}. Where the name is known, and on other "
        f"patients than were calibrated on: {names}."
    )


def _rounded(facts: ImageFacts) -> list[object]:
    return [round(facts.coverage, 4), "" if np.isnan(facts.agreement) else round(facts.agreement, 4)]


def _mean(values: Sequence[float]) -> float:
    """NaN of nothing; NaN among the values does not count."""
    known = [v for v in values if v is not None and not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")
