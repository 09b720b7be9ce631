"""Score a segmenter with the simulated annotator.

    python scripts/evaluate.py --dataset DIR --segmenter compact --strategy click --rounds 3 --out results

DIR holds an index.json or IMed-361M's dataset.json. Writes records.csv, summary.csv, summary.md and plots into a folder
that appears only when it is complete. Exit status 2, with one sentence, on input that cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

import numpy as np
from tqdm import tqdm

from imis_net.errors import DatasetError, ImisError
from imis_net.evaluation.cost import Cost, measure_cost
from imis_net.evaluation.harness import STRATEGIES, evaluate, first_prompt
from imis_net.evaluation.registry import SEGMENTERS, make_segmenter
from imis_net.evaluation.report import plot, summarise, write_records, write_summary
from imis_net.evaluation.worst_cases import WorstCases
from imis_net.segmenter import Segmenter
from imis_net.training.dataset import Record, read_imed361m, read_index


def main() -> int:
    args = _parser().parse_args()
    try:
        run(args)
    except ImisError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Evaluate and write; raises ImisError before anything stands under ``--out``."""
    if args.rounds < 0:
        raise DatasetError(f"--rounds: expected 0 or more, got {args.rounds}")
    if args.out.exists():
        raise DatasetError(f"--out: {args.out} exists already; choose another folder")
    if not args.out.parent.is_dir():
        raise DatasetError(f"--out: there is no folder {args.out.parent}")
    records = read_records(args.dataset, args.split)
    segmenter = make_segmenter(args.segmenter, args.weights, args.image_size)
    worst = WorstCases(args.rounds)
    scores = list(
        evaluate(
            segmenter,
            tqdm(records, unit="image", disable=None),
            args.strategy,
            args.rounds,
            args.seed,
            args.previous_mask,
            args.min_pixels,
            args.human_clicks,
            watch=worst.watch,
            keep_clicks=not args.forget_clicks,
        )
    )
    if not scores:
        raise DatasetError(f"nothing to score: no target in {args.dataset} that {args.strategy!r} can prompt")
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=".evaluate") as name:
        folder = Path(name) / "results"
        folder.mkdir()
        write_records(scores, folder / "records.csv")
        title = f"{args.segmenter}, {args.strategy}, {args.rounds} rounds"
        write_summary(summarise(scores, args.seed), folder, title, cost_of(segmenter, records, args.strategy))
        plot(scores, folder)
        worst.write(folder)
        os.rename(folder, args.out)
    print((args.out / "summary.md").read_text())


def read_records(dataset: Path, split: str) -> list[Record]:
    """Either layout, by the file that is there."""
    if (dataset / "dataset.json").is_file():
        return read_imed361m(dataset, split if split in ("training", "test") else "test")
    return read_index(dataset, [split])


def cost_of(segmenter: Segmenter, records: list[Record], strategy: str) -> Cost:
    """On the first target; a segmenter that must be given text is measured by a box."""
    record = next(r for r in records if any(True for _ in r.masks()))
    _, truth = next(record.masks())
    kind = strategy if "text" not in strategy else "box"
    return measure_cost(segmenter, record.image, first_prompt(truth, "", kind, np.random.default_rng(0)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", type=Path, required=True, metavar="DIR")
    add("--split", default="val", help="index.json: a subset; dataset.json: training or test (default: %(default)s)")
    add("--segmenter", choices=SEGMENTERS, default="compact")
    add("--weights", type=Path, metavar="FILE")
    add("--image-size", type=int, metavar="PX", help="imis_net and compact only; by default their own")
    add("--strategy", choices=STRATEGIES, default="box", help="the first prompt (default: %(default)s)")
    add("--rounds", type=int, default=0, help="corrective clicks after it (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--previous-mask", action="store_true", help="answer each click beside the mask of those before it")
    add("--forget-clicks", action="store_true", help="a correction is its click alone, as the paper trains")
    add("--human-clicks", action="store_true", help="first clicks on people's scribbles; only records that have some")
    add("--min-pixels", type=int, default=1, help="leave out smaller targets (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR2")
    return parser


if __name__ == "__main__":
    sys.exit(main())
