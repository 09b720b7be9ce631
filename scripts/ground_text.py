"""Teach a compact network the names of its targets, on image features that are encoded once.

    python scripts/ground_text.py --data DIR --weights IN.safetensors --out OUT.safetensors

DIR holds an index.json. Encoder and decoder stay as they are; only text prompts answer differently afterwards. The
committed weights were made with the defaults.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

import numpy as np

from imis_net.checkpoint import load_weights, save_weights
from imis_net.errors import CheckpointError, ImisError
from imis_net.networks.build import imis_net_compact
from imis_net.training.dataset import Record, read_index
from imis_net.training.ground_text import encode_views, ground_text

NOT_FOR_TRAINING = ("MedScribble/WBC", "ISBI", "phantom")
"""As in configs/compact.yaml."""
COMPLETE = "dataset/BTCV"
"""Every image of it has all of its organs labelled: what is not labelled is not there."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--views", type=int, default=5, help="of each completely labelled image; a third of others")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--slice-step", type=int, default=12, help="every how manieth slice of a volume")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        ground(args)
    except (ImisError, OSError) as error:
        print(f"ground_text: {error}", file=sys.stderr)
        return 2
    return 0


def ground(args: argparse.Namespace) -> None:
    if not args.weights.is_file() or not args.out.parent.is_dir():
        raise CheckpointError(f"expected a file {args.weights} and a folder {args.out.parent}")
    network, rng = imis_net_compact(), np.random.default_rng(args.seed)
    load_weights(network, args.weights)
    network.eval()
    records = read_index(args.data, ["train", None], exclude_sources=list(NOT_FOR_TRAINING), slice_step=args.slice_step)
    complete = [r for r in records if _is_complete(r)]
    others = [r for r in records if not _is_complete(r)]
    views = encode_views(network, complete, args.views, [COMPLETE], rng)
    views += encode_views(network, others, max(1, args.views // 3), [], rng)
    print(f"{len(views)} views encoded")
    ground_text(network, views, args.steps, rng)
    save_weights(network, args.out, {"architecture": "imis_net_compact"}, half=True)


def _is_complete(record: Record) -> bool:
    return COMPLETE in record.source


if __name__ == "__main__":
    sys.exit(main())
