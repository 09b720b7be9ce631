"""The frame's side and the decoder's width: accuracy beside parameters and cost.

    python benchmarks/study_sizes.py --data DIR [--width-weights 256=FILE 512=FILE 768=FILE]

The compact network's weights serve every frame; a decoder width is another network, so its Dice needs the weights of
one trained with it. Without them its row has parameters and cost alone. To train one:

    python -m monai.bundle run --config_file configs/train.yaml --data_root DIR --start_weights FILE \\
        --network '$lambda image_size: build.imis_net_vit_b(image_size, 256)'
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accuracy import MIN_PIXELS, mean_by_round
from study import Row, given, parser, write

from imis_net.checkpoint import load_weights
from imis_net.evaluation.cost import measure_cost
from imis_net.evaluation.harness import first_prompt
from imis_net.evaluation.registry import make_segmenter
from imis_net.networks.build import imis_net_vit_b
from imis_net.segmenter import Segmenter, TorchSegmenter
from imis_net.training.dataset import Record

FRAMES = (256, 384, 512, 768)
WIDTHS = (256, 512, 768)
WIDTH_STUDY_FRAME = 256
NAN = float("nan")


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--width-weights", nargs="*", default=[], metavar="WIDTH=FILE")
    args = own.parse_args()
    _, records, seeds = given(args)
    files = {int(width): Path(file) for width, _, file in (pair.partition("=") for pair in args.width_weights)}
    rows = []
    for side in FRAMES:
        segmenter = make_segmenter(args.segmenter, args.weights, side)
        dice = mean_by_round(segmenter, records, "box", 0, seeds)[0]
        rows.append(Row(f"frame {side} px, box", dice, beside=_cost(segmenter, records)))
    for width in WIDTHS:
        network = imis_net_vit_b(image_size=WIDTH_STUDY_FRAME, decoder_dim=width)
        if width in files:
            load_weights(network, files[width])
        num_trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        segmenter = TorchSegmenter(network)
        dice = mean_by_round(segmenter, records, "box", 0, seeds)[0] if width in files else NAN
        beside = f"{num_trained / 1e6:.2f} M trainable, {_cost(segmenter, records)}"
        rows.append(Row(f"decoder {width} wide at {WIDTH_STUDY_FRAME} px, box", dice, beside=beside))
    write("study_sizes", rows)


def _cost(segmenter: Segmenter, records: Sequence[Record]) -> str:
    image, (_, truth) = records[0].image, next(records[0].masks(MIN_PIXELS))
    return str(measure_cost(segmenter, image, first_prompt(truth, "", "box", np.random.default_rng(0))))


if __name__ == "__main__":
    main()
