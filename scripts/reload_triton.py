"""Give a running Triton new weights of the decoder and the text encoder; no click fails, no image is encoded again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundles" / "imis_net"))

from imis_net.errors import ImisError, ServingError
from imis_net.segmenter import load_segmenter
from imis_net.serving import repository as repo
from imis_net.serving.builds import build_and_compare, sample_slices
from imis_net.serving.manifest import TORCH
from imis_net.serving.reload import exchange


def main() -> None:
    args = _arguments()
    try:
        served = repo.Manifest.read(args.repository / repo.ENCODER / "1")
        segmenter = load_segmenter(served.name, args.weights, "cpu", **served.architecture)
        graphs = None
        if served.backend != TORCH:
            images = sample_slices(args.images)
            build, graphs = build_and_compare(segmenter, served.build, args.graphs, images, args.prompts)
            if build != served.build:
                raise ServingError(
                    f"the repository runs {served.build}, for which these weights do not agree with torch"
                )
        manifest = repo.describe(segmenter, served.architecture, None if graphs is None else served.build)
        version = exchange(args.url, args.repository, manifest, args.weights, graphs)
    except ImisError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"version {version} answers, weights {segmenter.weights_digest}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="a safetensors file with the same image encoder")
    parser.add_argument("--repository", type=Path, default=ROOT / "build" / "triton")
    parser.add_argument("--graphs", type=Path, default=ROOT / "build" / "graphs", help="where graphs are kept")
    parser.add_argument("--images", type=Path, default=ROOT / "apps" / "imis" / "sample_studies", help="to compare on")
    parser.add_argument("--prompts", type=int, default=500, help="at least so many are compared (default: %(default)s)")
    parser.add_argument("--url", default="127.0.0.1:8001", help="Triton's gRPC address (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
