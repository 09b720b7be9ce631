"""Engines of TensorRT on the GPU that is here: built, compared with float32 torch, timed beside it. ``make bench-gpu``.

    python benchmarks/gpu_engines.py [--model imis_net_vit_b --weights FILE --side 1024] [--backend tensorrt-rtx]

Every graph is exported and compiled in float32 and float16; both answer the prompts of the parity gate on real images.
The encoder, and the decoder with one click, are timed with inputs and outputs on the GPU, in turns with torch in TF32
and with torch's float16 autocast. For scale: VISTA3D's published figures for float16 engines over autocast are 1.81
and 1.53. Without --weights they are random: speeds hold, the parity of a trained network does not follow. Exit status
2: it cannot be done here, in one sentence.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "bundles" / "imis_net")]

from claims import Claim, report
from export_latency import interleaved

from imis_net import export
from imis_net.adapters.graph_runtimes import DECODER, ENGINE_SUFFIX, PRECISIONS, Build
from imis_net.adapters.graphs import GraphSegmenter
from imis_net.adapters.tensorrt import MODULES, Engine, check_gpu, load_module
from imis_net.errors import ImisError
from imis_net.evaluation.agreement import MAX_IOU_ERROR, MIN_IOU, MIN_MEAN_IOU, compare
from imis_net.networks.build import BUILDERS
from imis_net.networks.imis_net import IMISNet
from imis_net.segmenter import DEFAULT_MODEL, TorchSegmenter, load_segmenter
from imis_net.serving.builds import make, sample_slices
from imis_net.serving.tensors import POINT_LABELS

SAMPLES = ROOT / "apps" / "imis" / "sample_studies"
NUM_CALLS = 30
GOALS = {("encoder", "fp16"): (3.0, 1.6)}
"""By part and precision, over torch in TF32 and over its autocast; elsewhere an engine must not be slower."""
Inputs = dict[str, dict[str, torch.Tensor]]
Calls = dict[str, Callable[[], object]]


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="torch")  # the exporter's own housekeeping
    try:
        sm = check_gpu(args.backend)
        print(f"{args.backend} {load_module(args.backend).__version__}, {torch.cuda.get_device_name()}, SM {sm}")
        with tempfile.TemporaryDirectory() as folder:
            return report("gpu_engines", claims(args, _segmenter(args), Path(folder), sm))
    except ImisError as error:
        print(f"gpu_engines: {error}", file=sys.stderr)
        return 2


def _segmenter(args: argparse.Namespace) -> TorchSegmenter:
    size = {} if args.side is None else {"image_size": args.side}
    if args.model == DEFAULT_MODEL or args.weights:
        return load_segmenter(args.model, args.weights, **size)
    torch.manual_seed(0)
    return TorchSegmenter(BUILDERS[args.model](**size))


def claims(args: argparse.Namespace, local: TorchSegmenter, kept: Path, sm: str) -> Iterator[Claim]:
    what = f"{local.network.name} at {local.image_size} px, {args.backend}"
    sms = [sm] if args.backend == "tensorrt-rtx" else ()
    folders = {}
    for precision in PRECISIONS[args.backend]:
        build = Build(args.backend, precision)
        folders[precision], _ = make(local, build, kept, sms)
        segmenter = GraphSegmenter(local, folders[precision], build)
        seen = compare(local, segmenter, sample_slices(SAMPLES), args.prompts)
        yield Claim(f"{what} {precision}: mean mask IoU to torch float32", seen.mean_iou, MIN_MEAN_IOU)
        yield Claim(
            f"{what} {precision}: worst mask IoU", seen.worst_iou, MIN_IOU, beside=f"{seen.num_prompts} prompts"
        )
        yield Claim(f"{what} {precision}: predicted IoU differs by", seen.iou_error, MAX_IOU_ERROR, at_least=False)
    inputs = _inputs(local.network)
    engines = {p: _engine_calls(inputs, folder, args.backend) for p, folder in folders.items()}
    yield from speed(what, _torch_calls(inputs, local.network.cuda()), engines)


def speed(what: str, ours: Calls, engines: dict[str, Calls]) -> Iterator[Claim]:
    """``engines``: by precision, what answers the calls of torch by the same names."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for part, call in ours.items():

        def autocast(call: Callable[[], object] = call) -> None:
            with torch.autocast("cuda", torch.float16):
                call()

        calls = [_done(call), _done(autocast), *(_done(way[part]) for way in engines.values())]
        tf32_ms, autocast_ms, *engine_ms = interleaved(calls, NUM_CALLS)
        for precision, ms in zip(engines, engine_ms, strict=True):
            beside = f"torch TF32 {tf32_ms:.2f} ms, autocast {autocast_ms:.2f} ms, engine {ms:.2f} ms"
            over_tf32, over_autocast = GOALS.get((part, precision), (1.0, 1.0))
            yield Claim(f"{what} {precision}: {part}, torch TF32 / engine", tf32_ms / ms, over_tf32, beside=beside)
            if precision == "fp16":
                name = f"{what} {precision}: {part}, torch autocast / engine"
                yield Claim(name, autocast_ms / ms, over_autocast, beside=beside)


def _torch_calls(inputs: Inputs, network: IMISNet) -> Calls:
    @torch.inference_mode()
    def encoder() -> object:
        return network.encode_image(inputs[export.TRUNK][export.IMAGES])

    @torch.inference_mode()
    def decoder() -> object:
        *features, coords, labels = inputs[DECODER].values()
        return network.predict_from_points(tuple(features), coords, labels, None, None)

    return {"encoder": encoder, "decoder": decoder}


def _engine_calls(inputs: Inputs, folder: Path, backend: str) -> Calls:
    names = (export.TRUNK, export.NECK, DECODER)
    trunk, neck, click = (Engine(folder / f"{name}{ENGINE_SUFFIX}", backend) for name in names)

    def encoder() -> object:
        maps = trunk.run_on_gpu(inputs[export.TRUNK])
        return neck.run_on_gpu(dict(zip(neck.input_names, maps, strict=True)))

    return {"encoder": encoder, "decoder": lambda: click.run_on_gpu(inputs[DECODER])}


def _inputs(network: IMISNet) -> Inputs:
    """Of one image and one click, on the GPU; the network is on the CPU."""
    wanted = {}
    for graph in export.graphs(network):
        if graph.name in (export.TRUNK, DECODER):
            given = graph.at(1, 2)
            if POINT_LABELS in given:
                given[POINT_LABELS] = torch.tensor([[1, -1]])
            wanted[graph.name] = {name: value.contiguous().cuda() for name, value in given.items()}
        if graph.name == DECODER:
            break
    return wanted


def _done(call: Callable[[], object]) -> Callable[[], object]:
    """The call and what it left to the GPU."""

    def finished() -> None:
        call()
        torch.cuda.synchronize()

    return finished


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUILDERS, default=DEFAULT_MODEL)
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--side", type=int, metavar="PX", help="of the model frame; default: the model's own")
    parser.add_argument("--backend", choices=MODULES, default="tensorrt")
    parser.add_argument("--prompts", type=int, default=500, help="at least so many are compared (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
