"""What the paper's training strategy is worth: a short training as it is, and without one part of it at a time.

    python benchmarks/ablations.py --data DIR [--steps 400] [--images 1] [--side 256] [--out DIR2] [--only NAME ...]

Each is the compact network on abdominal CT at --side px, on the same images in the same order from the same seed: five
named targets and five dense interactive masks of an image, a first prompt and K = 8 corrective rounds, from ImageNet.
K = 0 takes a fraction of the time for the same images, so it is trained once for as many images and once for about as
long.
Trainings of --out that are complete are not done again. Rows stand in results/ablations.csv.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

from accuracy import UNSEEN, mean_by_round, records_of
from study import Row, write

from imis_net.evaluation.floors import EllipseFloor
from imis_net.losses import InteractiveLoss
from imis_net.networks.build import COMPACT_CATEGORIES, imis_net_compact
from imis_net.segmenter import DEFAULT_MODEL, PUBLISHED_RULE, Segmenter, load_segmenter, model_frame
from imis_net.training.dataset import Record, read_index
from imis_net.training.epoch_sampler import EpochSampler
from imis_net.training.imagenet_start import start_from_imagenet
from imis_net.training.interactive_step import InteractionPolicy
from imis_net.training.trainer import Stage, Trainer
from imis_net.training.validation import Protocol

SEED, LEARNING_RATE = 1, 1e-3
"""A quick rate, and half the served side or less: it is the order of the rows that counts, not their height."""
NUM_TARGETS, NUM_ROUNDS, NUM_CORRECTIONS = 5, 8, 8


@dataclass(frozen=True)
class Recipe:
    """The training strategy, or what is left of it.

    Attributes:
        num_targets, num_interactive: of an image; always ten in all.
        num_rounds: K.
        from_imagenet: where the encoder starts.
        steps_factor: multiple of the other recipes' steps.
    """

    num_targets: int = NUM_TARGETS
    num_interactive: int = NUM_TARGETS
    num_rounds: int = NUM_ROUNDS
    from_imagenet: bool = True
    steps_factor: int = 1


RECIPES = {
    "as in the paper": Recipe(),
    "without dense masks": Recipe(num_targets=2 * NUM_TARGETS, num_interactive=0),
    "without an ImageNet start": Recipe(from_imagenet=False),
    "K = 0, as many images": Recipe(num_rounds=0),
    "K = 0, about as long": Recipe(num_rounds=0, steps_factor=5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder with an index.json")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: %(default)s)")
    parser.add_argument("--images", type=int, default=1, help="of a step; to a GPU eight are little more than one")
    parser.add_argument("--side", type=int, default=256, help="of the frame in px (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="keep the trained weights here, and go on there")
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    records = [r for r in read_index(args.data, ["train"], with_interactive_masks=True) if _is_abdominal_ct(r)]
    validation = records_of(args.data, "val", "BTCV")
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        rows = [_floors(args.data)]
        for name in args.only:
            recipe = RECIPES[name]
            trainer = make_trainer(recipe, records, validation, out / _slug(name), args.steps, args.images, args.side)
            segmenter = load_segmenter(DEFAULT_MODEL, trained(trainer), image_size=args.side)
            segmenter.rule = PUBLISHED_RULE  # the compact model's own was chosen for other weights
            steps = args.steps * recipe.steps_factor
            beside = f"{steps} steps of {args.images} image{'s' * (args.images > 1)} at {args.side} px"
            for what, dice in _scores(segmenter, args.data):
                rows.append(Row(f"{name}: {what}", dice, beside=beside))
                print(rows[-1], flush=True)
        write("ablations", rows)


def trained(trainer: Trainer) -> Path:
    """The weights of a finished training."""
    folder = Path(trainer.out_dir)
    done = folder / "done"
    if not done.exists():
        trainer.run()
        done.touch()
    return folder / "last.safetensors"


def make_trainer(
    recipe: Recipe,
    records: Sequence[Record],
    validation: Sequence[Record],
    folder: Path,
    num_steps: int,
    num_images: int,
    side: int,
) -> Trainer:
    stage = Stage(
        image_size=side,
        num_steps=num_steps * recipe.steps_factor,
        num_images=num_images,
        images_per_call=num_images,
        learning_rate=LEARNING_RATE,
        sampler=EpochSampler(
            records,
            model_frame(DEFAULT_MODEL, side),
            recipe.num_targets,
            recipe.num_interactive,
            COMPACT_CATEGORIES,
            seed=SEED,
        ),
        policy=InteractionPolicy({"click": 1.0, "box": 1.0, "text": 1.0}, recipe.num_rounds),
        loss=InteractiveLoss(),
    )
    return Trainer(
        build=imis_net_compact,
        stages=[stage],
        validation=validation,
        out_dir=folder,
        initialise=start_from_imagenet if recipe.from_imagenet else None,
        validate_every=None,
        protocol=Protocol(("click",), max_records=2),
        served_size=side,
        seed=SEED,
    )


def _scores(segmenter: Segmenter, data: Path) -> list[tuple[str, float]]:
    """Patients and data sets that no recipe saw. Corrections as they were taught, and as viewers send them."""
    btcv = records_of(data, "val", "BTCV")
    by_mask = mean_by_round(
        segmenter, btcv, "click", NUM_CORRECTIONS, range(1), use_previous_mask=True, keep_clicks=False
    )
    by_clicks = mean_by_round(segmenter, btcv, "click", NUM_CORRECTIONS, range(1), use_previous_mask=False)
    return [
        ("box", mean_by_round(segmenter, btcv, "box", 0, range(1))[0]),
        ("click", by_mask[0]),
        (f"click + {NUM_CORRECTIONS} corrections, each its click and the mask before", by_mask[-1]),
        (f"click + {NUM_CORRECTIONS} corrections, all clicks each time", by_clicks[-1]),
        (f"{len(UNSEEN)} other data sets, box", _mean_over_sets(segmenter, data)),
    ]


def _floors(data: Path) -> Row:
    ellipse = EllipseFloor()
    box = mean_by_round(ellipse, records_of(data, "val", "BTCV"), "box", 0, range(1))[0]
    return Row("the ellipse in the box", box, beside=f"other data sets {_mean_over_sets(ellipse, data):.3f}")


def _mean_over_sets(segmenter: Segmenter, data: Path) -> float:
    dices = [mean_by_round(segmenter, records_of(data, *which), "box", 0, range(1))[0] for which in UNSEEN.values()]
    return sum(dices) / len(dices)


def _is_abdominal_ct(record: Record) -> bool:
    return record.interactive_masks is not None


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


if __name__ == "__main__":
    main()
