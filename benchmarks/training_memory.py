"""Memory of a training process: with a trunk of its own, and on the trunk that a Triton server holds.

    python benchmarks/training_memory.py

Random weights in the exact layout: memory does not depend on what they are. Each figure is the peak of a process that
fine-tunes for a few steps, judges and writes its candidate. Rows stand in results/training_memory.csv.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "bundles/imis_net")]

import numpy as np
from claims import Claim, report
from own_peak import own_peak_mb
from safetensors import safe_open

from imis_net.checkpoint import TRUNK, save_weights
from imis_net.embedding_disk import EmbeddingDisk
from imis_net.networks.build import BUILDERS
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import load_segmenter
from imis_net.serving import repository as repo
from imis_net.serving.tritonserver import TritonServer
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuning

NUM_STEPS = 3
NUM_PROCESSES = 5
MB = 2**20


@dataclass(frozen=True)
class Case:
    """A network and its frame; ``url`` of the server with its trunk, "" without one."""

    model: str
    side: int
    url: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=4, metavar=("MODEL", "SIDE", "URL", "FOLDER"), help="(what each process runs)")
    args = parser.parse_args()
    if args.train:
        model, side, url, folder = args.train
        train(Case(model, int(side), url), Path(folder))
        print(own_peak_mb())
        return 0
    return report("training_memory", claims())


def claims() -> Iterator[Claim]:
    for case in (Case("imis_net_compact", 512), Case("imis_net_vit_b", 256)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            trunk_mb = prepare(case, folder)
            own_mb = peak_mb(case, folder)
            with TritonServer(folder / "repository", [repo.ENCODER]) as server:
                served_mb = peak_mb(Case(case.model, case.side, server.grpc_url), folder)
            what = f"{case.model} at {case.side} px: peak MB of training on Triton's trunk / on its own"
            beside = f"{served_mb:.0f} of {own_mb:.0f} MB; the trunk's weights are {trunk_mb:.0f} MB"
            yield Claim(what, served_mb / own_mb, 1.0 - 0.8 * trunk_mb / own_mb, at_least=False, beside=beside)


def prepare(case: Case, folder: Path) -> float:
    """Weights, and a repository of them; the trunk's size in float32 [MB]."""
    start = folder / "start.safetensors"
    save_weights(BUILDERS[case.model](case.side), start, {}, half=True)
    segmenter = load_segmenter(case.model, start, image_size=case.side)
    repo.build(
        folder / "repository", ROOT / "triton_models", repo.describe(segmenter, {"image_size": case.side}), start
    )
    with safe_open(start, framework="pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if key.startswith(TRUNK)]  # noqa: SIM118
    return sum(4 * int(np.prod(shape)) for shape in shapes) / MB


def peak_mb(case: Case, folder: Path) -> float:
    """The median over processes: what an allocator gives back is chance."""
    command = [sys.executable, __file__, "--train", case.model, str(case.side), case.url, str(folder)]
    done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(NUM_PROCESSES)]
    return statistics.median(float(d.stdout.splitlines()[-1]) for d in done)


def train(case: Case, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as trunk:  # nothing kept from another process
        settings = FineTuning(max_steps=NUM_STEPS, validate_every=NUM_STEPS, learn_neck=False)
        architecture = {"image_size": case.side}
        tuner = Tuner(case.model, EmbeddingDisk(Path(trunk), 10**9), settings, architecture, trunk_url=case.url)
        records = [_record(str(n)) for n in range(3)]
        start, candidate = folder / "start.safetensors", Path(trunk) / "candidate.safetensors"
        tuner.train(start, records[:1], records[1:2], candidate)
        tuner.answers(candidate, records[2:])


def _record(patient: str) -> Record:
    label = np.zeros((256, 256), np.uint16)
    label[60:150, 60:160] = 1
    image = np.random.default_rng(int(patient)).integers(0, 60, (256, 256, 3)).astype(np.uint8)
    image[label > 0] += 120
    return Record(patient, patient, "a set", "CT", image, ((label, {1: "liver"}),))


if __name__ == "__main__":
    sys.exit(main())
