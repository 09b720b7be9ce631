"""The compact default against the floors that ignore the image: one row per data set and strategy.

    python benchmarks/compact_accuracy.py --data DIR [--weights F] [--out benchmarks/results/compact_accuracy.csv]

DIR holds an index.json. BTCV's validation patients chose the checkpoint; the other sets were never seen in training.
Dice is the mean over masks and seeds; boxes are jittered by up to 5 px a side; clicks are uniform in the target.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundles" / "imis_net"))

from imis_net.evaluation.floors import EllipseFloor
from imis_net.evaluation.harness import Score, evaluate
from imis_net.segmenter import Segmenter, load_segmenter
from imis_net.training.dataset import Record, read_index

SETS = {
    "BTCV patients 034-036": ("val", "BTCV"),
    "SAM-Med2D demo (AMOS, TotalSegmentator)": ("val", "SAM-Med2D"),
    "MNI152 head MRI": ("val", "nilearn"),
    "stardist 3D nuclei": ("val", "stardist"),
    "ISBI-2012 EM": ("val", "ISBI"),
    "pyradiomics tumours (MRI, CT)": ("test", "pyradiomics"),
}
STRATEGIES = (("box", 0), ("click", 3), ("text", 0), ("text+click", 0))
MIN_PIXELS = 24
"""Targets smaller than this are specks that a slice through a volume leaves behind."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--only-box", action="store_true")
    args = parser.parse_args()
    segmenter = load_segmenter(weights=args.weights)
    rows = []
    for name, (subset, source) in SETS.items():
        records = [r for r in _records(args.data, subset) if source in r.source]
        floor = _mean(_scores(EllipseFloor(), records, "box", 0, args.num_seeds))
        for strategy, num_rounds in STRATEGIES[: 1 if args.only_box else None]:
            scores = _scores(segmenter, records, strategy, num_rounds, args.num_seeds)
            by_round: dict[int, list[Score]] = defaultdict(list)
            for score in scores:
                by_round[score.round].append(score)
            for round_index, members in by_round.items():
                row = {
                    "set": name,
                    "strategy": strategy if round_index == 0 else f"{strategy} + {round_index} corrections",
                    "num_images": len({s.case for s in members}),
                    "num_masks": len(members) // args.num_seeds,
                    "dice": round(_mean(members), 4),
                    "ellipse": round(floor, 4) if strategy == "box" else "",
                    "weights": segmenter.weights_digest,
                    "commit": _commit(),
                    "device": "cpu float32",
                }
                rows.append(row)
                floor_text = f"floor {row['ellipse']}, " if row["ellipse"] else ""
                print(f"{name}: {row['strategy']}: {row['dice']} ({floor_text}{row['num_masks']} masks)", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _records(data: Path, subset: str) -> list[Record]:
    return read_index(data, [subset], slice_step=12)


def _scores(
    segmenter: Segmenter, records: Sequence[Record], strategy: str, num_rounds: int, num_seeds: int
) -> list[Score]:
    return [
        score
        for seed in range(num_seeds)
        for score in evaluate(segmenter, records, strategy, num_rounds, seed, min_pixels=MIN_PIXELS)
    ]


def _mean(scores: Iterable[Score]) -> float:
    return float(np.mean([s.dice for s in scores]))


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
