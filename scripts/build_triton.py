"""The Triton model repository of one set of weights: graphs on a CPU or engines on a GPU, in the same models.

    python scripts/build_triton.py --backend onnxruntime|openvino|tensorrt|tensorrt-rtx|torch [--precision fp16]
        [--model NAME] [--weights FILE] [--size PX] [--out build/triton] [--images DIR] [--sm 80,86,89,120]

What is built has to answer as float32 torch does, over hundreds of prompts on real images; a precision that does not is
given up for the next more exact one, saying so. TensorRT for RTX also compiles on a machine without a GPU; there the
float16 graphs are compared, and the engines are not run. Exit status 2: it cannot be done, in one sentence.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundles" / "imis_net"))

from imis_net.adapters.graph_runtimes import PRECISIONS, Build
from imis_net.errors import ImisError
from imis_net.networks.build import BUILDERS
from imis_net.segmenter import DEFAULT_MODEL, TorchSegmenter, load_segmenter, weights_path
from imis_net.serving import repository as repo
from imis_net.serving.builds import build_and_compare, sample_slices
from imis_net.serving.manifest import TORCH

SAMPLES = ROOT / "apps" / "imis" / "sample_studies"


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="torch")  # the exporter's own housekeeping
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    architecture = {} if args.size is None else {"image_size": args.size}
    try:
        local = load_segmenter(args.model, args.weights, "cpu", **architecture)
        build, graphs = None, None
        if args.backend != TORCH:
            build, graphs = _build(args, local)
        manifest = repo.describe(local, architecture, build)
        repo.build(args.out, ROOT / "triton_models", manifest, weights_path(args.model, args.weights), graphs)
    except (ImisError, OSError) as error:
        print(f"build_triton: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {build or 'torch fp32'}, weights {local.weights_digest}")
    return 0


def _build(args: argparse.Namespace, local: TorchSegmenter) -> tuple[Build, Path]:
    images = sample_slices(args.images)
    wanted = Build(args.backend, args.precision or PRECISIONS[args.backend][0])
    return build_and_compare(local, wanted, args.graphs, images, args.prompts, args.sm, print)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=(*PRECISIONS, TORCH), default="onnxruntime")
    parser.add_argument("--precision", help="int8, bf16 or fp16 where the backend has it; default: fp32")
    parser.add_argument("--model", choices=BUILDERS, default=DEFAULT_MODEL)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="default: the bundle's models/<model>.safetensors")
    parser.add_argument("--size", type=int, metavar="PX", help="the frame's side; default: the model's own")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "triton", metavar="DIR")
    parser.add_argument("--graphs", type=Path, default=ROOT / "build" / "graphs", metavar="DIR", help="kept graphs")
    parser.add_argument("--images", type=Path, default=SAMPLES, metavar="DIR", help="NIfTI files to compare on")
    parser.add_argument("--prompts", type=int, default=500, help="at least so many are compared (default: %(default)s)")
    parser.add_argument(
        "--sm", type=lambda text: text.split(","), default=[], help="compute capabilities, with tensorrt-rtx"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
