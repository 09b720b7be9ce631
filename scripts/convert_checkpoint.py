"""Convert published weights to this project's layout.

    cd bundles/imis_net/models
    python ../../../scripts/convert_checkpoint.py --from imis-bench IMISNet-B.pth --out imis_net_vit_b.safetensors

imis-bench fills the whole network, its own text tower included (it is not OpenAI's). sam, medsam and sam-med2d fill the
image encoder's trunk, and with --decoder-dim 256 also the neck, the prompt encoder and what SAM's decoder has; the rest
keeps fresh weights, to be trained, and is listed. Prints one JSON report. Exit status 2, with the list on standard
error and nothing written, if keys are missing or do not fit.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

from imis_net.checkpoint import (
    LAYOUTS,
    LoadReport,
    convert,
    fill,
    read_state_dict,
    resize_position_tables,
    save_weights,
    sha256,
)
from imis_net.errors import CheckpointError
from imis_net.networks.build import BUILDERS, DECODER_DIMS

FRESH_IN_SAM = (
    "text_encoder.",
    "text_projection.",
    "mask_decoder.text_output.",
    "mask_decoder.semantic_",
)
"""What SAM does not have, whatever the decoder's width."""
FRESH_IF_WIDER = (*FRESH_IN_SAM, "image_encoder.neck.", "prompt_encoder.", "mask_decoder.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("--from", dest="layout", choices=sorted(LAYOUTS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--arch", choices=[n for n in BUILDERS if "vit" in n], default="imis_net_vit_b")
    parser.add_argument("--decoder-dim", type=int, choices=DECODER_DIMS, default=768)
    parser.add_argument("--seed", type=int, default=0, help="for what stays fresh (default: %(default)s)")
    args = parser.parse_args()
    try:
        print(json.dumps(run(args), indent=2))
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> dict:
    """Convert, or raise CheckpointError before anything is written."""
    if args.out.suffix != ".safetensors":
        raise CheckpointError(f"--out: expected a .safetensors file, got {args.out.name}")
    if not args.out.parent.is_dir():
        raise CheckpointError(f"--out: no such folder: {args.out.parent}")
    state, ignored = convert(read_state_dict(args.input), args.layout)
    resized = resize_position_tables(state) if args.layout == "sam-med2d" else []
    torch.manual_seed(args.seed)
    network = BUILDERS[args.arch](decoder_dim=args.decoder_dim)
    fresh = _expected_fresh(args.layout, args.decoder_dim)
    if fresh == FRESH_IF_WIDER:  # SAM's 256-wide parts cannot go into a wider decoder
        ignored += [k for k in state if k.startswith(fresh)]
        state = {k: v for k, v in state.items() if not k.startswith(fresh)}
    report = fill(network, state)
    fatal = LoadReport(
        missing=[k for k in report.missing if not k.startswith(fresh)],
        unexpected=report.unexpected if args.layout == "imis-bench" else [],
        wrong_shape=report.wrong_shape,
    )
    if fatal.problems():
        raise CheckpointError(
            f"{args.input.name} is not a {args.layout} checkpoint for {args.arch}\n{fatal.problems()}"
        )
    source = sha256(args.input)
    metadata = {
        "architecture": args.arch,
        "decoder_dim": str(args.decoder_dim),
        "layout": args.layout,
        "source": source,
    }
    save_weights(network, args.out, metadata)
    return {
        "loaded": len(report.loaded),
        "fresh": report.missing,
        "unexpected": report.unexpected,
        "ignored": ignored,
        "resized": resized,
        "input": {"file": args.input.name, "sha256": source},
        "output": {"file": args.out.name, "sha256": sha256(args.out)},
    }


def _expected_fresh(layout: str, decoder_dim: int) -> tuple[str, ...]:
    if layout == "imis-bench":
        return ()
    return FRESH_IN_SAM if decoder_dim == 256 else FRESH_IF_WIDER


if __name__ == "__main__":
    sys.exit(main())
