"""The same three stages on Ray Data: readers and writers on CPUs, models as actors, images streaming between them.

What a worker had in hand when it was killed is done again by another: files are whole or absent, and the same bytes
whoever writes them. Nodes of a cluster see ``--source`` and ``--out`` under the same paths and have the same
installation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from imis_net.data_engine.ingest import Sample
from imis_net.data_engine.pipeline import Finished, Run, finish, proposals_or_reject
from imis_net.data_engine.sources import Source

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
IMAGES_PER_BATCH = 4


class ProposeActor:
    """A model that stays loaded; images come in batches."""

    def __init__(self, run: Run) -> None:
        self.propose_masks = run.make_propose()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [self._row(*row) for row in batch["row"]]
        return {"row": _objects(rows)}

    def _row(self, source: str, item: Sample | Finished) -> tuple[str, Any, Any]:
        if not isinstance(item, Sample):
            return source, None, item
        return source, item, proposals_or_reject(item, self.propose_masks)


def run_on_ray(
    run: Run, sources: Sequence[Source], num_workers: int, address: str | None = None, num_gpus: float = 0
) -> Iterator[tuple[str, Finished]]:
    """Yields (stem of the source, what became of one image), in no particular order.

    Args:
        num_workers: models at once.
        address: of a running cluster; None starts one here and ends it.
        num_gpus: that each model takes.
    """
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    paths = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    ray.init(
        address=address or "local",  # not a cluster that happens to run here
        num_cpus=None if address else max(2, num_workers + 1),
        include_dashboard=False if not address else None,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield from _rows(run, sources, num_workers, num_gpus)
    finally:
        ray.shutdown()


def _rows(run: Run, sources: Sequence[Source], num_workers: int, num_gpus: float) -> Iterator[tuple[str, Finished]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    reference = ray.put((run, sources))

    def read(row: dict[str, Any]) -> list[dict[str, Any]]:
        here, all_sources = ray.get(reference)
        source = all_sources[row["index"]]
        return [{"row": (source.stem, item)} for item in here.read(source)]

    def write(row: dict[str, Any]) -> dict[str, Any]:
        source, sample, found = row["row"]
        return {"row": (source, found if sample is None else finish(ray.get(reference)[0], sample, found))}

    results = (
        ray.data.from_items([{"index": i} for i in range(len(sources))], override_num_blocks=len(sources))
        .flat_map(read, num_cpus=0.25)
        .map_batches(
            ProposeActor,
            fn_constructor_args=(run,),
            batch_size=IMAGES_PER_BATCH,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            num_cpus=1 if not num_gpus else 0,
            num_gpus=num_gpus,
        )
        .map(write, num_cpus=0.25)
    )
    for row in results.iter_rows():
        yield row["row"]


def _objects(rows: list[Any]) -> Any:
    """An array of tuples, which numpy would otherwise make a matrix of."""
    array = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        array[i] = row
    return array
