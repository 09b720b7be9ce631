"""Serve a study folder with the networks on a Triton server of this machine. Run by ``make serve-triton``."""

from __future__ import annotations

import argparse
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundles" / "imis_net"))

from imis_net.errors import ImisError
from imis_net.segmenter import DEFAULT_MODEL, load_segmenter, weights_path
from imis_net.serving import repository as repo
from imis_net.serving.manifest import TORCH
from imis_net.serving.tritonserver import TritonServer


def main() -> None:
    args = _arguments()
    # Uvicorn raises the signal that ended it once more; as an exception it also ends Triton.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print("starting Triton", flush=True)
    server = TritonServer(
        args.repository or default_repository(),
        repo.MODELS,
        http_port=args.triton_http_port,
        grpc_port=args.triton_grpc_port,
        metrics_port=args.triton_metrics_port,
    )
    try:
        with server:
            print(f"Triton is ready: gRPC {server.grpc_url}, metrics {server.metrics_url}", flush=True)
            conf = ["--conf", "segmenter", "triton", "--conf", "triton_url", server.grpc_url]
            sys.argv = ["serve.py", *args.more, *conf]
            runpy.run_path(str(ROOT / "scripts" / "serve.py"), run_name="__main__")
    except ImisError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def default_repository() -> Path:
    """What build_triton.py made of graphs or engines; else the compact default on torch, made anew at each start."""
    folder = ROOT / "build" / "triton"
    if folder.is_dir() and repo.Manifest.read(folder / repo.ENCODER / "1").backend != TORCH:
        return folder
    folder.parent.mkdir(exist_ok=True)
    weights = weights_path(DEFAULT_MODEL)
    repo.build(folder, ROOT / "triton_models", repo.describe(load_segmenter(), {}), weights)
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Anything else goes to scripts/serve.py, as --port, --studies, --conf KEY VALUE."
    )
    parser.add_argument("--repository", type=Path, help="model repository (default: build/triton)")
    parser.add_argument("--triton-grpc-port", type=int, default=8001)
    parser.add_argument("--triton-metrics-port", type=int, default=8002)
    parser.add_argument("--triton-http-port", type=int, default=8003)
    args, args.more = parser.parse_known_args()
    return args


if __name__ == "__main__":
    main()
