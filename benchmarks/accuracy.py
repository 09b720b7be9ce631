"""The compact default's accuracy: one claim per row, beside the floor of the ellipse that ignores the image.

    python benchmarks/accuracy.py --data DIR [--weights FILE] [--num-seeds 3]

DIR holds an index.json. BTCV's validation patients are not trained on, but chose the checkpoint. "Never trained on" is
the mean over data sets, each the mean of its masks. Boxes are moved by up to 5 px a side; clicks are uniform; each
builds on the mask of those before it, as in the app.
Writes results/accuracy.csv; exit status 1 if any claim falls short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

from claims import Claim, report

from imis_net.evaluation.cost import measure_cost
from imis_net.evaluation.floors import EllipseFloor
from imis_net.evaluation.harness import evaluate, first_prompt
from imis_net.segmenter import Segmenter, load_segmenter
from imis_net.training.dataset import Record, read_index

UNSEEN = {
    "SAM-Med2D demo (AMOS, TotalSegmentator)": ("val", "SAM-Med2D"),
    "MNI152 head MRI": ("val", "nilearn"),
    "stardist 3D nuclei": ("val", "stardist"),
    "ISBI-2012 EM": ("val", "ISBI"),
    "pyradiomics tumours (MRI, CT)": ("test", "pyradiomics"),
}
"""Subset and part of the source's name of each data set that training never sees."""
ABOVE_FLOOR = 0.03
"""What a box on a set never trained on must give beyond the ellipse in it."""
SCRIBBLED = ("train", "MedScribble/WBC")
"""White blood cells: the one set with people's scribbles that training leaves out."""
MIN_PIXELS = 24
"""Targets smaller than this are specks that a slice through a volume leaves behind."""
SLICE_STEP = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--num-seeds", type=int, default=3)
    args = parser.parse_args()
    segmenter, seeds = load_segmenter(weights=args.weights), range(args.num_seeds)
    btcv = records_of(args.data, "val", "BTCV")
    return report("accuracy", chain(_btcv_claims(segmenter, btcv, seeds), _unseen_claims(segmenter, args.data, seeds)))


def _btcv_claims(segmenter: Segmenter, records: Sequence[Record], seeds: range) -> Iterator[Claim]:
    floor = mean_by_round(EllipseFloor(), records, "box", 0, seeds)[0]
    image, (_, truth) = records[0].image, next(records[0].masks(MIN_PIXELS))
    cost = measure_cost(segmenter, image, first_prompt(truth, "", "box", np.random.default_rng(0)))
    name = "BTCV patients 034-036"

    def claim(strategy: str, goal: float, floor_text: str = "floor -") -> Claim:
        value = mean_by_round(segmenter, records, strategy, 0, seeds)[0]
        return Claim(f"{name}, {strategy}", value, goal, beside=floor_text)

    yield claim("box", 0.90, f"floor {floor:.3f}; {cost}")
    clicks = mean_by_round(segmenter, records, "click", 3, seeds)
    yield Claim(f"{name}, click", clicks[0], 0.80, beside="floor -")
    yield Claim(f"{name}, click + 3 corrections", clicks[3], 0.88, beside="floor -")
    yield claim("text", 0.70)
    yield claim("text+click", 0.85)


def _unseen_claims(segmenter: Segmenter, data: Path, seeds: range) -> Iterator[Claim]:
    ours, floors = {}, {}
    for name, which in UNSEEN.items():
        records = records_of(data, *which)
        ours[name], floors[name] = (mean_by_round(s, records, "box", 0, seeds)[0] for s in (segmenter, EllipseFloor()))
        goal = floors[name] + ABOVE_FLOOR
        yield Claim(f"{name}, never trained on, box", ours[name], goal, beside=f"floor {floors[name]:.3f}")
    yield Claim(f"{len(ours)} sets never trained on, box", _mean(ours), 0.82, beside=f"floor {_mean(floors):.3f}")
    human = mean_by_round(segmenter, records_of(data, *SCRIBBLED), "click", 3, seeds, human_clicks=True)
    yield Claim("never trained on, human first click + 3 corrections", human[3], 0.75, beside="floor -")


def _mean(by_set: Mapping[str, float]) -> float:
    return float(np.mean(list(by_set.values())))


def records_of(data: Path, subset: str, source: str) -> list[Record]:
    return [r for r in read_index(data, [subset], slice_step=SLICE_STEP) if source in r.source]


def mean_by_round(
    segmenter: Segmenter,
    records: Sequence[Record],
    strategy: str,
    num_rounds: int,
    seeds: range,
    human_clicks: bool = False,
    use_previous_mask: bool = True,
    **annotator: float,
) -> list[float]:
    """Mean Dice over masks and seeds after each round, answered as the app does unless the previous mask is not to be
    used; NaN where there is nothing to score."""
    scores = [
        score
        for seed in seeds
        for score in evaluate(
            segmenter,
            records,
            strategy,
            num_rounds,
            seed,
            min_pixels=MIN_PIXELS,
            human_clicks=human_clicks,
            use_previous_mask=use_previous_mask,
            **annotator,
        )
    ]
    by_round = [[s.dice for s in scores if s.round == r] for r in range(num_rounds + 1)]
    return [float(np.mean(dice)) if dice else float("nan") for dice in by_round]


if __name__ == "__main__":
    sys.exit(main())
