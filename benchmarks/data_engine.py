"""The data engine's claims.

    python benchmarks/data_engine.py [--num-images 6] [--device cpu] [--sizes 100,1000] [--only compact,...]

DIR holds imed361m_btcv, the published layout's sample. Throughput is measured on generated images with a segmenter that
costs next to nothing, so that the engine's own share is seen; the model's share is measured on the sample.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bundles" / "imis_net"), str(ROOT / "benchmarks")]

from claims import Claim, report
from data_engine_mutants import is_killed, mutants

from imis_net.data_engine import candidates, quality_control
from imis_net.data_engine.assembly import assemble, read_records
from imis_net.data_engine.candidates import Proposals, propose
from imis_net.data_engine.ingest import Reject, Sample, classes_of, read_samples
from imis_net.data_engine.names import load_names
from imis_net.data_engine.pipeline import Propose, Run, SegmenterStage, make_folders, run_here
from imis_net.data_engine.provenance import Action, InteractiveMask, Origin, Target
from imis_net.data_engine.regions import mask_iou, mask_ious
from imis_net.data_engine.semantics import Named, draw_names, guess_by_drawn, precision_on_others
from imis_net.data_engine.settings import load_settings
from imis_net.data_engine.sources import find_sources
from imis_net.prompts import ImageEmbedding, Prediction, Prompt
from imis_net.segmenter import DEFAULT_MODEL, Segmenter, load_segmenter
from imis_net.training.dataset import Record, read_imed361m
from imis_net.transforms import Frame

SETTINGS = load_settings()
FAST = replace(SETTINGS, candidates=replace(SETTINGS.candidates, grid_side=8))
PAPER_NUM_IMAGES = 6_400_000
BYTES_PER_TB = 1e12


class GreyLevels:
    """A segmenter for timing: the connected region of like grey under a click. Knows nothing, costs a millisecond."""

    frame = Frame(64)
    encoder_digest = "grey levels"
    known_texts: tuple[str, ...] = ()

    def encode_image(self, image: np.ndarray) -> ImageEmbedding:
        return ImageEmbedding((torch.from_numpy(image[:, :, 0].copy()),), (image.shape[0], image.shape[1]), "grey")

    def predict(self, embedding: ImageEmbedding, prompt: Prompt) -> Prediction:
        return self.predict_batch(embedding, [prompt])[0]

    def predict_batch(self, embedding: ImageEmbedding, prompts: Sequence[Prompt]) -> list[Prediction]:
        levels = embedding.features[0].numpy() // 64
        regions = np.zeros(levels.shape, int)
        for level in range(4):
            found, _ = ndimage.label(levels == level)
            regions[found > 0] = found[found > 0] + regions.max()
        answers = []
        for prompt in prompts:
            assert prompt.point_coords is not None
            x, y = np.rint(prompt.point_coords[0]).astype(int)
            mask = regions == regions[min(y, len(levels) - 1), min(x, levels.shape[1] - 1)]
            answers.append(Prediction(mask, 0.9, np.zeros((16, 16), np.float32)))
        return answers


@dataclass(frozen=True)
class GreyStage:
    """Makes the timing segmenter's proposals; its worker dies once where ``dies_once`` names a file to remember it."""

    dies_once: Path | None = None

    def __call__(self) -> Propose:
        segmenter = GreyLevels()

        def propose_masks(image: np.ndarray) -> Proposals:
            if self.dies_once is not None and not self.dies_once.exists():
                self.dies_once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return propose(segmenter, image, FAST.candidates)

        return propose_masks


def mutation_claims() -> list[Claim]:
    killed, survivors, segmenter = 0, [], load_segmenter()
    for module, name in ((quality_control, "test_quality_control"), (candidates, "test_candidates")):
        tests = _tests(_load(f"{name}.py"), segmenter)
        source = Path(module.__file__ or "").read_text()
        assert not is_killed(module, source, tests), f"{name} fails without any change"
        for what, mutated in mutants(source):
            if is_killed(module, mutated, tests):
                killed += 1
            else:
                survivors.append(f"{module.__name__.rpartition('.')[2]} {what}")
    for survivor in survivors:
        print(f"  survives: {survivor}")
    total = killed + len(survivors)
    return [Claim("mutants killed, fraction", killed / total, 0.95, beside=f"{killed} of {total}")]


def property_claims(num_cases: int) -> list[Claim]:
    """Split over the cores; a case that does not hold raises."""
    num_parts = os.cpu_count() or 1
    with ProcessPoolExecutor(num_parts) as pool:
        num_held = sum(pool.map(_num_cases_that_hold, [range(n, num_cases, num_parts) for n in range(num_parts)]))
    return [Claim("property cases that hold", num_held, num_cases)]


def _num_cases_that_hold(seeds: Sequence[int]) -> int:
    tests = _load("test_quality_control.py")
    for seed in seeds:
        masks, targets = tests.scene(seed)
        tests.check(masks, targets, quality_control.control(masks, targets, tests.RULES), tests.RULES)
    return len(seeds)


def sample_claims(data: Path) -> list[Claim]:
    """Our rules over the authors' interactive masks; what they allow is decided here by other means."""
    allowed = kept = total = 0
    reasons: dict[str, int] = {}
    for record in _sample(data):
        given = _authors_masks(data, record.case)
        targets = [Target(n, m) for n, m in record.masks()]
        masks = [InteractiveMask(m, Origin.GENERATED, 1.0) for m in given]
        outcome = quality_control.control(masks, targets, SETTINGS.quality_control)
        stands = [m.mask for m in outcome.kept]
        total += len(given)
        for mask in given:
            sizes = np.bincount(ndimage.label(mask, np.ones((3, 3)))[0].ravel())[1:]
            if sizes.max() >= SETTINGS.quality_control.min_part_fraction * mask.size or any(
                np.array_equal(mask, t.mask) for t in targets
            ):
                allowed += 1
                kept += any(mask_iou(mask, s) > 0.5 for s in stands)
        for removed in outcome.removed:
            last = removed.steps[-1]
            reasons[last.rule.value] = reasons.get(last.rule.value, 0) + 1
        assert all(m.steps[-1].action is Action.REMOVED for m in outcome.removed)
    beside = f"{kept} of {allowed} allowed of {total} in all; removed: {reasons}"
    return [Claim("authors' masks that stay of those the rules allow", kept / allowed, 0.99, beside=beside)]


def compact_claims(data: Path, num_images: int, device: str, folder: Path) -> list[Claim]:
    """The default model on the sample with the full grid, and what it means for the paper's data: hours and disk."""
    stage = SegmenterStage(DEFAULT_MODEL, None, device, SETTINGS)
    run = _run(data / "imed361m_btcv", folder, stage)
    propose_masks = stage()
    clock = time.process_time if device == "cpu" else time.perf_counter
    sources = find_sources(data / "imed361m_btcv")
    samples = [s for source in sources for s in read_samples(source, run.table, SETTINGS.ingest)]
    samples = [s for s in samples if isinstance(s, Sample)][:: len(samples) // num_images][:num_images]
    propose_masks(samples[0].image)  # a first call is slower
    of_truths, of_others, seconds = [], [], 0.0
    for sample in samples:
        start = clock()
        found = propose_masks(sample.image)
        seconds += clock() - start
        run.write(sample, found)
        authors = _authors_masks(data, sample.stem)
        best = mask_ious(authors, [m.mask for m in found.candidates]).max(axis=1, initial=0)
        for mask, iou in zip(authors, best, strict=True):
            (of_truths if any(np.array_equal(mask, t.mask) for t in sample.targets) else of_others).append(iou)
    seconds /= num_images
    hours = PAPER_NUM_IMAGES * seconds / 3600
    num_masks = np.mean([len(r["masks"]) for r in read_records(folder)])
    num_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / num_images
    disk = PAPER_NUM_IMAGES * num_bytes / BYTES_PER_TB
    kind = "CPU" if device == "cpu" else "GPU"
    parts = f"{np.mean(of_truths):.2f} of {len(of_truths)} ground truths, {np.mean(of_others):.2f} of the others"
    mean = float(np.mean(of_truths + of_others))
    return [
        Claim("compact model: masks per image", float(num_masks), 20, beside=f"{num_images} images"),
        Claim("compact model: mean best IoU with the authors' masks", mean, 0.0, beside=f"reported; {parts}"),
        Claim(f"compact model: {kind} seconds per image", seconds, 1e9, False, f"6.4 M images: {hours:,.0f} hours"),
        Claim("output per image of the sample, MB", num_bytes / 1e6, 1e9, False, f"6.4 M of them: {disk:.1f} TB"),
    ]


def semantics_claims(data: Path) -> list[Claim]:
    """Names for the sample's ground truths by text prompts, each half of the patients calibrated on the other."""
    segmenter, table = load_segmenter(), load_names()
    named: list[Named] = []
    for record in _sample(data):
        drawn = draw_names(segmenter, segmenter.encode_image(record.image), segmenter.known_texts or ())
        drawn = {table.class_of(n, "CT", "BTCV") or n: mask for n, mask in drawn.items()}
        guesses = guess_by_drawn([m for _, m in record.masks()], drawn)
        truths = [table.class_of(n, "CT", "BTCV") or n for n, _ in record.masks()]
        named += [Named(g, t, record.patient) for g, t in zip(guesses, truths, strict=True)]
    told = precision_on_others(named, SETTINGS.semantics)
    always = np.mean([n.guess.name == n.truth for n in named])
    beside = f"coverage {told.coverage:.2f} of {told.num_masks} masks; naming all is right for {always:.2f}"
    return [Claim("precision of proposed names", told.precision, SETTINGS.semantics.min_precision, beside=beside)]


def identity_claims(folder: Path) -> list[Claim]:
    """The same bytes from one process, one and four workers, after two kills, and from two nodes that lose a worker."""
    source = folder / "source"
    _generate(source, 24)
    expected = _digest(_build(source, folder / "here"))
    on_ray = [_digest(_build_on_ray(source, folder / f"workers{n}", n)) for n in (1, 4)]
    _kill_twice(source, folder / "killed")
    resumed = _digest(_build(source, folder / "killed"))
    nodes = _digest(_build_on_two_nodes(source, folder))
    lost = 24 - len(list((folder / "nodes" / "image").glob("*.png")))
    return [
        Claim("same bytes with 1 worker", on_ray[0] == expected, 1),
        Claim("same bytes with 4 workers", on_ray[1] == expected, 1),
        Claim("same bytes after two kills", resumed == expected, 1),
        Claim("same bytes from two nodes, a worker killed", nodes == expected, 1),
        Claim("images lost with the worker", lost, 0, at_least=False),
    ]


def throughput_claims(folder: Path, sizes: Sequence[int]) -> list[Claim]:
    """Each size in a process of its own, whose peak memory is its own."""
    rates, peaks = [], []
    for size in sizes:
        _generate(folder / "source", size)
        command = [sys.executable, __file__, "--measure", str(folder / "source"), str(folder / f"out{size}")]
        seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
        rates.append(size / float(seconds))
        peaks.append(float(peak))
        shutil.rmtree(folder / f"out{size}")
        speed = f"{rates[-1]:.1f} images per CPU second"
        print(f"  {size} images: {speed}, peak {peaks[-1]:.0f} MB", flush=True)
    beside = f"{sizes[0]} to {sizes[-1]} images"
    hours = PAPER_NUM_IMAGES / rates[-1] / 3600
    return [
        Claim("throughput of the most images by that of the fewest", rates[-1] / rates[0], 0.8, beside=beside),
        Claim("peak memory of the most images by that of the fewest", peaks[-1] / peaks[0], 1.2, False, beside),
        Claim(
            "engine without the model, images per CPU second", rates[-1], 0, beside=f"6.4 M of them: {hours:,.0f} hours"
        ),
    ]


def measure(source: Path, out: Path) -> None:
    """Seconds of the processor, which a busy machine does not stretch, and the peak memory in MB."""
    start = time.process_time()
    _build(source, out)
    print(time.process_time() - start, _peak_mb())


def _peak_mb() -> float:
    """Of this program alone: what getrusage tells includes the program that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _run(source: Path, out: Path, stage: Callable[[], Propose]) -> Run:
    table = load_names()
    make_folders(out)
    return Run(out, FAST, table, classes_of(find_sources(source), table), stage, "benchmark")


def _build(source: Path, out: Path) -> Path:
    run = _run(source, out, GreyStage())
    rejects = [r for _, r in run_here(run, find_sources(source)) if isinstance(r, Reject)]
    assemble(out, "generated", run.classes, rejects, run.digest, FAST.ingest.duplicate_max_distance)
    return out


def _build_on_ray(source: Path, out: Path, workers: int, address: str | None = None, dies: Path | None = None) -> Path:
    from imis_net.data_engine.ray_pipeline import run_on_ray

    run = _run(source, out, GreyStage(dies))
    found = [f for _, f in run_on_ray(run, find_sources(source), workers, address)]
    rejects = [f for f in found if isinstance(f, Reject)]
    assemble(out, "generated", run.classes, rejects, run.digest, FAST.ingest.duplicate_max_distance)
    return out


def _build_on_two_nodes(source: Path, folder: Path) -> Path:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=2)
        return _build_on_ray(source, folder / "nodes", 2, cluster.address, folder / "died")
    finally:
        cluster.shutdown()


def _kill_twice(source: Path, out: Path) -> None:
    """Start, and kill as soon as a few more images are there."""
    for number in (6, 14):
        process = subprocess.Popen(
            [sys.executable, __file__, "--measure", str(source), str(out)], stdout=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(out.glob("records/*.json"))) < number:
            time.sleep(0.005)
        process.kill()
        process.wait()


def _generate(folder: Path, number: int) -> None:
    """Pictures of grey discs, and a mask of one of them; what is there already stays."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").write_text('{"labels": {"1": "spleen"}}')
    y, x = np.mgrid[:128, :128]
    for i in range(number):
        path = folder / "images" / f"image_{i:05d}.png"
        if path.exists():
            continue
        rng = np.random.default_rng(i)
        image = np.full((128, 128), rng.integers(0, 60), np.uint8)
        for _ in range(8):
            cy, cx, radius = *rng.integers(10, 118, 2), rng.integers(6, 26)
            disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
            image[disc] = rng.integers(64, 255)
        Image.fromarray(disc.astype(np.uint8)).save(folder / "masks" / path.name)
        Image.fromarray(image).save(path)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _sample(data: Path) -> list[Record]:
    return [r for split in ("training", "test") for r in read_imed361m(data / "imed361m_btcv", split)]


def _authors_masks(data: Path, case: str) -> list[np.ndarray]:
    ids = np.load(data / "imed361m_btcv" / "imask" / f"x___{case}.npy")[:, :, 0]
    return [ids == i for i in np.unique(ids) if i > 0]


def _load(name: str) -> ModuleType:
    path = ROOT / "tests" / "unit" / "data_engine" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _tests(module: ModuleType, segmenter: Segmenter) -> list[Callable[[], None]]:
    """The named cases, what they ask for filled in; the random ones come in the other claim."""
    cases = [f for n, f in vars(module).items() if n.startswith("test_") and "whatever" not in n]
    needs = {f: list(inspect.signature(f).parameters) for f in cases}
    on_model = [partial(f, segmenter) for f in cases if needs[f] == ["default_segmenter"]]
    return [f for f in cases if not needs[f]] + on_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--num-images", type=int, default=6, help="of the sample, for the compact model")
    parser.add_argument("--device", default="cpu", help="of the compact model")
    parser.add_argument("--num-cases", type=int, default=100_000)
    parser.add_argument("--sizes", default="100,1000,10000")
    parser.add_argument("--only", help="parts, by commas; the rows of the others stay")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        measure(*args.measure)
        return 0
    sizes = [int(n) for n in args.sizes.split(",")]
    parts: dict[str, Callable[[Path], list[Claim]]] = {
        "mutants": lambda _: mutation_claims(),
        "properties": lambda _: property_claims(args.num_cases),
        "sample": lambda _: sample_claims(args.data),
        "compact": lambda folder: compact_claims(args.data, args.num_images, args.device, folder),
        "semantics": lambda _: semantics_claims(args.data),
        "identity": identity_claims,
        "throughput": lambda folder: throughput_claims(folder, sizes),
    }
    chosen = args.only.split(",") if args.only else list(parts)
    return report("data_engine", _measured(parts[name] for name in chosen), keep_others=bool(args.only))


def _measured(parts: Iterable[Callable[[Path], list[Claim]]]) -> Iterator[Claim]:
    """Each part's claims as soon as it is done, in a folder of its own."""
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="engine") as folder:
            yield from part(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
