"""Retraining's claims: run by ``make bench-retrain``.

python benchmarks/retrain.py [--only simulation,unseen,adapters,clicks,loop] [--fires 1000] [--minutes 10]

``adapters`` fine-tunes on the unseen set twice, without and with them, ``--adapter_minutes`` each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("bundles/imis_net", "tests/e2e")]

import numpy as np
import requests
import torch
from claims import Claim, report
from own_peak import own_peak_mb
from poor_model import poor_weights
from requests_toolbelt.multipart.decoder import MultipartDecoder
from running_server import APP, running_server
from simulated_schedules import simulate

from imis_net.embedding_disk import EmbeddingDisk
from imis_net.evaluation.bootstrap import mean_interval
from imis_net.evaluation.harness import record_dices
from imis_net.retraining.registry import ModelRegistry
from imis_net.retraining.tuner import Tuner
from imis_net.segmenter import load_segmenter, weights_path
from imis_net.training.dataset import Record, read_index
from imis_net.training.finetune import FineTuning

MODEL = "imis_net_compact"
UNSEEN = "ISBI"
"""Electron microscopy of neurons: left out of the committed model's training, see configs/compact.yaml."""
SAMPLES = APP / "sample_studies"
FACTS = json.loads((SAMPLES / "labels.json").read_text())
NUM_CLICKS = 60
ADAPTER_RANK = 8
NUM_TRAINING, NUM_VALIDATION = 16, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="simulation,unseen,adapters,clicks,loop")
    parser.add_argument("--fires", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--adapter_minutes", type=float, default=2.5)
    parser.add_argument("--tune", nargs=2, metavar=("RANK", "CANDIDATE"), help="(what each process of adapters runs)")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "dev")
    args = parser.parse_args()
    if args.tune:
        print(json.dumps(tune(args.data, args.adapter_minutes, int(args.tune[0]), Path(args.tune[1]))))
        return 0
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "simulation": lambda path: simulation(path, args.fires),
            "unseen": lambda path: unseen(path, args.data, args.minutes),
            "adapters": lambda path: adapters(path, args.data, args.adapter_minutes),
            "clicks": clicks,
            "loop": loop,
        }
        for name in args.only.split(","):
            path = Path(folder) / name
            path.mkdir()
            status |= report(f"retrain_{name}", parts[name](path))
    return status


def simulation(folder: Path, num_fires: int) -> list[Claim]:
    start = time.monotonic()
    tally = simulate(folder, num_fires)
    beside = (
        f"{tally.num_fires} fires, {tally.num_kills} killed, {tally.num_published} published, "
        f"{tally.num_refused} refused, {time.monotonic() - start:.0f} s"
    )
    return [
        Claim("simulated schedules", tally.num_fires, 1000, beside=beside),
        Claim("bad publishes", tally.num_bad_publishes, 0, at_least=False),
        Claim("patients in two splits", tally.num_leaks, 0, at_least=False),
        Claim("lost labels", tally.num_lost_labels, 0, at_least=False),
        Claim("stores or schedules not intact", tally.num_broken, 0, at_least=False),
    ]


def unseen(folder: Path, data: Path, minutes: float) -> list[Claim]:
    """Twenty labelled slices of a set that the model never saw, learnt from; the others of that set score it."""
    training, validation, held_out = unseen_records(data)
    base, candidate, disk = weights_path(MODEL), folder / "tuned.safetensors", EmbeddingDisk(folder / "trunk", 10**10)
    shown = [0.0]

    def tell(progress) -> None:
        if time.monotonic() - shown[0] > 20:
            shown[0] = time.monotonic()
            print(f"  {progress.fraction:.0%} Dice {progress.best_dice:.3f} {progress.seconds_left:.0f} s", flush=True)

    tuner = Tuner(MODEL, disk, FineTuning(max_seconds=60 * minutes, validate_every=25, patience=12), on_progress=tell)
    tuned = tuner.train(base, training, validation, candidate)
    again = Tuner(MODEL, disk, FineTuning(max_steps=5, validate_every=5, learn_neck=False))
    again.train(base, training, validation, folder / "again.safetensors")
    before, after = load_segmenter(MODEL), load_segmenter(MODEL, candidate)
    decoder_only = load_segmenter(MODEL, folder / "again.safetensors")
    one, other = record_dices(before, held_out), record_dices(after, held_out)
    low, high = mean_interval(other - one, np.random.default_rng(0), 2000)
    of = f"{len(held_out)} slices of the same stack"
    beside = f"{one.mean():.3f} to {other.mean():.3f} on {of}, 95 % {low:.3f} to {high:.3f}"
    return [
        Claim("Dice gained on an unseen set by 20 labelled slices", float((other - one).mean()), 0.05, beside=beside),
        Claim("minutes of fine-tuning", tuned.seconds / 60, 10, at_least=False, beside=f"{tuned.num_steps} steps"),
        Claim(
            "images encoded by a second retraining", again.num_encoded, 0, False, f"{tuner.num_encoded} by the first"
        ),
        Claim(
            "embeddings lost to serving by decoder-only retraining",
            float(decoder_only.encoder_digest != before.encoder_digest),
            0,
            at_least=False,
        ),
    ]


def unseen_records(data: Path) -> tuple[list[Record], list[Record], list[Record]]:
    """To learn from, to validate on, and held out."""
    records = [r for r in read_index(data, ["train", "val"]) if UNSEEN in r.source]
    num_labelled = NUM_TRAINING + NUM_VALIDATION
    return records[:NUM_TRAINING], records[NUM_TRAINING:num_labelled], records[num_labelled:]


def adapters(folder: Path, data: Path, minutes: float) -> list[Claim]:
    """The same minutes on the same slices without and with adapters, each in a process of its own."""
    held_out = unseen_records(data)[2]
    before = record_dices(load_segmenter(MODEL), held_out)
    gains, told = {}, {}
    for rank in (0, ADAPTER_RANK):
        candidate = folder / f"{rank}.safetensors"
        command = [sys.executable, __file__, "--data", data, "--adapter_minutes", minutes, "--tune", rank, candidate]
        done = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True)
        facts = json.loads(done.stdout.splitlines()[-1])
        gains[rank] = record_dices(load_segmenter(MODEL, candidate), held_out) - before
        told[rank] = f"{facts['num_steps']} steps of {facts['step_s']:.2f} s, peak {facts['peak_mb']:.0f} MB"
    low, high = mean_interval(gains[ADAPTER_RANK] - gains[0], np.random.default_rng(0), 2000)
    beside = (
        f"from {before.mean():.3f} in {minutes:g} minutes on {torch.get_num_threads()} threads, {told[ADAPTER_RANK]}; "
        f"without {gains[0].mean():.3f}, {told[0]}; with minus without 95 % {low:.3f} to {high:.3f}"
    )
    what = f"Dice gained on an unseen set with adapters of rank {ADAPTER_RANK}"
    return [Claim(what, float(gains[ADAPTER_RANK].mean()), 0.05, beside=beside)]


def tune(data: Path, minutes: float, rank: int, candidate: Path) -> dict[str, float]:
    """One fine-tuning; its steps, the median seconds of one, and this process's peak memory."""
    training, validation, _ = unseen_records(data)
    settings = FineTuning(max_seconds=60 * minutes, validate_every=25, patience=12, adapter_rank=rank)
    ends = [time.monotonic()]
    tuner = Tuner(MODEL, EmbeddingDisk(candidate.with_suffix(".trunk"), 10**10), settings)
    tuner.on_progress = lambda progress: ends.append(time.monotonic())
    tuned = tuner.train(weights_path(MODEL), training, validation, candidate)
    return {"num_steps": tuned.num_steps, "step_s": float(np.median(np.diff(ends))), "peak_mb": own_peak_mb()}


def clicks(folder: Path) -> list[Claim]:
    """Clicks of one annotator on a real server, before and while it retrains in its process."""
    shutil.copytree(SAMPLES, folder / "studies")
    for name in FACTS["images"]:
        tag = "reference" if name.endswith("1") else "final"
        (folder / "studies" / "labels" / tag).mkdir(exist_ok=True, parents=True)
        shutil.copy(folder / "studies" / "reference" / f"{name}.nii.gz", folder / "studies" / "labels" / tag)
    with running_server(folder, folder / "studies", "--conf", "retrain_minutes", "1") as server:
        before = [_click_s(server.url) for _ in range(NUM_CLICKS)]
        requests.post(f"{server.url}/train/imis", json={}, timeout=60).raise_for_status()
        while requests.get(f"{server.url}/imis/models", timeout=60).json()["training"].get("reason") != "fine-tuning":
            time.sleep(0.5)
        during = [_click_s(server.url) for _ in range(NUM_CLICKS)]
        is_running = requests.get(f"{server.url}/imis/models", timeout=60).json()["training"]["state"] == "running"
        requests.delete(f"{server.url}/train/", timeout=60)
        stopped = requests.get(f"{server.url}/train/", timeout=60).json()["status"] == "STOPPED"
        rollback_s = _rollback_s(server.url, folder)
    ratio = float(np.median(during) / np.median(before)) if is_running else float("nan")
    beside = f"{1000 * np.median(before):.0f} to {1000 * np.median(during):.0f} ms"
    return [
        Claim("click p50 while retraining, times the usual", ratio, 1.5, at_least=False, beside=beside),
        Claim("training stopped on request", float(stopped), 1),
        Claim("seconds of a rollback, until another model answers", rollback_s, 1, at_least=False),
    ]


def _rollback_s(url: str, folder: Path) -> float:
    """Of the request and the first click after it; NaN if that click is not answered by the version before."""
    _, before = _click(url)
    (root,) = folder.rglob("registry")
    registry = ModelRegistry(root)
    other = registry.add(poor_weights(folder / "other.safetensors", load_segmenter(MODEL).image_size), {})
    registry.publish(other, "to be taken back")
    while requests.get(f"{url}/imis/models", timeout=60).json()["served"] != other:
        time.sleep(0.2)
    assert _click(url)[1] != before
    start = time.perf_counter()
    requests.post(f"{url}/imis/models/rollback", timeout=60).raise_for_status()
    _, after = _click(url)
    return time.perf_counter() - start if after == before else float("nan")


def loop(folder: Path) -> list[Claim]:
    """The whole loop on a real server, over HTTP: labels, schedule, gate, a better click; poison, and a refusal."""
    test = ROOT / "tests" / "e2e" / "test_retraining.py"
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-q", "-rs", "--basetemp", folder / "t", test]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    summary = said[-1] if said else "nothing was run"
    return [Claim("end to end: tests that pass", float("1 passed" in summary), 1, beside=summary)]


def _click_s(url: str) -> float:
    time.sleep(0.05)
    return _click(url)[0]


def _click(url: str) -> tuple[float, str]:
    """Seconds, and the digest of the weights that answered."""
    image = FACTS["example"]["image"]
    click = FACTS["images"][image]["clicks"][FACTS["example"]["label"]]
    start = time.perf_counter()
    answer = requests.post(
        f"{url}/infer/imis",
        params={"image": image, "output": "all"},
        data={"params": json.dumps({"foreground": [click]})},
        timeout=60,
    )
    answer.raise_for_status()
    seconds = time.perf_counter() - start
    parts = MultipartDecoder.from_response(answer).parts
    said = next(part.content for part in parts if b'name="params"' in part.headers[b"Content-Disposition"])
    return seconds, json.loads(said)["weights"]


if __name__ == "__main__":
    sys.exit(main())
