"""What the studies of the paper share: which segmenter on which masks, and one table beside the paper's own figures.

The paper's figures (arXiv 2411.12814, image level, partly read off its plots) are of other images and of a network of
182 M parameters at 1024 px. They stand beside ours as a reference for the shape of a curve, not as a rival. To repeat
a study as published, give the converted official weights and a folder in either layout that ``scripts/evaluate.py``
reads:

    --data DIR --subset test --source "" --segmenter imis_net --image-size 1024 --weights FILE
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

from accuracy import records_of
from claims import RESULTS, where

from imis_net.evaluation.registry import SEGMENTERS, make_segmenter
from imis_net.segmenter import Segmenter
from imis_net.training.dataset import Record


@dataclass(frozen=True)
class Row:
    """One setting of a study.

    Attributes:
        dice: mean over masks; NaN where it could not be measured.
        paper: the paper's figure; NaN where it gives none.
        beside: a floor, a size, a cost.
    """

    setting: str
    dice: float
    paper: float = float("nan")
    beside: str = ""

    def __str__(self) -> str:
        dice = "not measured" if math.isnan(self.dice) else f"{self.dice:.3f}"
        paper = "" if math.isnan(self.paper) else f"the paper, on its own data: {self.paper:.3f}"
        beside = "; ".join(filter(None, (paper, self.beside)))
        return f"{self.setting}: {dice}" + (f" ({beside})" if beside else "")


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder with an index.json")
    made.add_argument("--subset", default="val")
    made.add_argument("--source", default="BTCV", help="part of the source's name (default: %(default)s)")
    made.add_argument("--segmenter", choices=SEGMENTERS, default="compact")
    made.add_argument("--weights", type=Path, metavar="FILE")
    made.add_argument("--image-size", type=int, metavar="PX")
    made.add_argument("--num-seeds", type=int, default=1)
    return made


def given(args: argparse.Namespace) -> tuple[Segmenter, list[Record], range]:
    """The segmenter, the records and the seeds that the command line names."""
    segmenter = make_segmenter(args.segmenter, args.weights, args.image_size)
    return segmenter, records_of(args.data, args.subset, args.source), range(args.num_seeds)


def write(name: str, rows: Sequence[Row]) -> None:
    """Print the rows; results/<name>.csv."""
    RESULTS.mkdir(exist_ok=True)
    facts = where()
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["setting", "dice", "paper", "beside", *facts])
        for row in rows:
            print(row, flush=True)
            table.writerow([row.setting, f"{row.dice:.4f}", f"{row.paper:.3f}", row.beside, *facts.values()])
