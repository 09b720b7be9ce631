"""A network as ONNX graphs, each compared with torch before it is kept.

    python scripts/export_onnx.py --out DIR [--model imis_net_compact] [--weights FILE] [--size 256|512|1024]

DIR gets trunk, neck, text encoder and decoders, and parity.csv. It appears whole or not at all. Exit status 2: it
cannot be done, in one sentence.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

from imis_net.errors import ImisError
from imis_net.export import TOLERANCE, export
from imis_net.networks.build import BUILDERS
from imis_net.segmenter import DEFAULT_MODEL, load_segmenter


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", choices=BUILDERS, default=DEFAULT_MODEL)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: the bundle's models/<model>.safetensors")
    parser.add_argument("--size", type=int, metavar="PX", help="the frame's side; default: the model's own")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", module="torch")  # the exporter's own housekeeping
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        size = {} if args.size is None else {"image_size": args.size}
        rows = export(load_segmenter(args.model, args.weights, "cpu", **size).network, args.out)
    except (ImisError, OSError) as error:
        print(f"export_onnx: {error}", file=sys.stderr)
        return 2
    for graph in dict.fromkeys(row.graph for row in rows):
        worst = max(row.error for row in rows if row.graph == graph)
        print(f"{graph}: differs from torch by at most {worst:.1e} (allowed {TOLERANCE:.0e})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
