"""Dense interactive masks from any data set, as IMed-361M was made.

    python scripts/build_masks.py --source DIR --out DIR2 [--workers 4]

DIR holds images with labels: NIfTI, NRRD or DICOM volumes with label maps, DICOM SEG, pictures with masks, or
IMed-361M's layout. DIR2 becomes IMed-361M's layout with an index, a report and a list of what was left out. A run that
ended early goes on where it stopped. Exit status 0: all is in; 3: done, but DIR2/rejects.csv lists images; 2: nothing
could be done.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles" / "imis_net"))

from tqdm import tqdm

from imis_net.data_engine.assembly import assemble
from imis_net.data_engine.ingest import Reject, classes_of
from imis_net.data_engine.names import NAMES_FILE, load_names
from imis_net.data_engine.naming import propose_names
from imis_net.data_engine.pipeline import Finished, Run, SegmenterStage, make_folders, run_digest, run_here
from imis_net.data_engine.report import write_report
from imis_net.data_engine.settings import SETTINGS_FILE, load_settings
from imis_net.data_engine.shards import write_shards
from imis_net.data_engine.sources import Source, find_sources
from imis_net.errors import ImisError
from imis_net.segmenter import DEFAULT_MODEL

LOG_INTERVAL_S = 30.0
"""Between two lines of progress where nobody watches."""
STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""
LEFT_OUT = 3
"""Exit status of a run that is done, but not with every image; 1 is Python's own, for what nobody foresaw."""


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        rejects = build(args)
    except ImisError as error:
        print(f"build_masks: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"build_masks: cannot write: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("build_masks: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    for reject in rejects[:10]:
        print(f"build_masks: left out {reject.stem}: {reject.reason}", file=sys.stderr)
    if len(rejects) > 10:
        print(f"build_masks: and {len(rejects) - 10} more, see {args.out / 'rejects.csv'}", file=sys.stderr)
    return LEFT_OUT if rejects else 0


def build(args: argparse.Namespace) -> list[Reject]:
    """Do what the command line says; returns what was left out.

    Raises:
        ImisError: a source, settings or weights that cannot be used.
        OSError: ``--out`` cannot be written.
    """
    settings, table = load_settings(args.settings), load_names(args.names)
    sources = find_sources(args.source, args.modality, args.licence)
    classes = classes_of(sources, table)
    stage = SegmenterStage(args.model, args.weights, args.device, settings)
    settings_and_model = run_digest(settings, classes, stage.weights_digest())
    make_folders(args.out)
    run = Run(args.out.resolve(), settings, table, classes, stage, settings_and_model)
    rejects = [r for r in _finished(run, sources, args) if isinstance(r, Reject)]
    name = args.name or args.source.resolve().name
    precision = propose_names(args.out, run.digest, settings.semantics)
    left_out = assemble(args.out, name, classes, rejects, run.digest, settings.ingest.duplicate_max_distance)
    if args.images_per_shard:
        write_shards(args.out, args.images_per_shard)
    print(write_report(args.out, settings.report, left_out, precision))
    return left_out


def _finished(run: Run, sources: list[Source], args: argparse.Namespace) -> Iterator[Finished]:
    """Everything that comes out, with progress: sources begun, images, images per second and time left."""
    if args.workers == 0 and args.ray_address is None:
        found = run_here(run, sources)
    else:
        from imis_net.data_engine.ray_pipeline import run_on_ray

        found = run_on_ray(run, sources, max(1, args.workers), args.ray_address, args.gpus_per_model)
    seen: set[str] = set()
    start_s = time.monotonic()
    interval_s = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    with tqdm(total=len(sources), unit="source", mininterval=interval_s, maxinterval=interval_s) as progress:
        for num_images, (source, one) in enumerate(found, 1):
            rate = num_images / (time.monotonic() - start_s)
            progress.set_postfix_str(f"{num_images} images, {rate:.2f} images/s", refresh=False)
            progress.update(source not in seen)
            seen.add(source)
            yield one


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", type=Path, required=True, metavar="DIR")
    add("--out", type=Path, required=True, metavar="DIR2")
    add("--name", help="the data set's name (default: the source folder's)")
    add("--modality", default="unknown", help="of images whose source does not say")
    add("--licence", default="unknown", help="of images whose source does not say")
    add("--model", default=DEFAULT_MODEL, help="default: %(default)s; sam_vit_b, sam_vit_l, sam_vit_h take --weights")
    add("--weights", type=Path, metavar="FILE")
    add("--device", default="cpu")
    add("--settings", type=Path, default=SETTINGS_FILE, metavar="YAML", help="default: configs/data_engine.yaml")
    add("--names", type=Path, default=NAMES_FILE, metavar="YAML", help="default: configs/data_engine_names.yaml")
    add("--workers", type=_count, default=0, help="models at once, on Ray; 0: all in this process (default)")
    add("--images-per-shard", type=_count, default=0, help="also write WebDataset shards of so many images")
    add("--ray-address", metavar="HOST:PORT", help="a running Ray cluster")
    add("--gpus-per-model", type=float, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
