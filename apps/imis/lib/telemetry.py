"""What operators watch: Prometheus metrics, ``/healthz`` and ``/readyz``. No name of anything or anybody in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from fastapi import Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import BaseRoute

if TYPE_CHECKING:
    from lib.infer import Engine
    from lib.pool import WorkerPool

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_STAGES = {"read": "read", "slice": "read", "encode": "encode", "predict": "decode", "write": "write"}
"""The stopwatch's laps -> the stages of the histogram."""


class Telemetry:
    """One registry per app, so that a reloaded app starts from zero. Thread safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "imis_http_requests", "Answers by route and status", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "imis_http_seconds", "Time to answer", ["route"], buckets=_BUCKETS_S, registry=self.registry
        )
        self._stages = Histogram(
            "imis_stage_seconds", "Time by stage of a click", ["stage"], buckets=_BUCKETS_S, registry=self.registry
        )
        for stage in ("queue", *dict.fromkeys(_STAGES.values())):
            self._stages.labels(stage)  # shown from the start, at zero

    def queued(self, waited_s: float) -> None:
        self._stages.labels("queue").observe(waited_s)

    def stages(self, laps_ms: Mapping[str, float]) -> None:
        """One click's laps."""
        seconds: dict[str, float] = {}
        for lap, ms in laps_ms.items():
            if lap in _STAGES:
                seconds[_STAGES[lap]] = seconds.get(_STAGES[lap], 0.0) + ms / 1000
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """``route`` is a template such as /infer/{model}, never a path, which may name a patient."""
        method = method if re.fullmatch("[A-Z]{1,7}", method) else "other"
        self.requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, engine: Engine, pool: WorkerPool) -> None:
        self.registry.register(_State(engine, pool))

    def watch_uploads(self, num_waiting: Callable[[], int]) -> None:
        Gauge("imis_uploads_waiting", "Labels that the PACS does not have yet", registry=self.registry).set_function(
            num_waiting
        )


class _State(Collector):
    """What the caches, the pool and the models are at the moment of asking."""

    def __init__(self, engine: Engine, pool: WorkerPool) -> None:
        self.engine, self.pool = engine, pool

    def collect(self) -> Iterable[Metric]:
        for name, value in self.engine.cache_counters().items():
            yield CounterMetricFamily(f"imis_cache_{name}", f"Embedding cache: {name}", value=value)
        for name, value in self.engine.cache_gauges().items():
            yield GaugeMetricFamily(f"imis_cache_{name}", f"Caches: {name}", value=value)
        yield GaugeMetricFamily("imis_queue_length", "Jobs that wait", value=self.pool.num_queued)
        yield GaugeMetricFamily("imis_jobs_running", "Jobs that run", value=self.pool.num_running)
        digests = {
            "weights": self.engine.segmenter.weights_digest,
            "encoder": self.engine.segmenter.encoder_digest,
            "segmenter": str(self.engine.status().get("in_use", "torch")),
        }
        yield InfoMetricFamily("imis_model", "The model that answers", value=digests)


def routes(app: Callable[[], object]) -> list[BaseRoute]:
    """Coroutines, so that they answer while every worker is busy."""

    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        telemetry: Telemetry = app().telemetry  # type: ignore[attr-defined]
        return Response(generate_latest(telemetry.registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    async def readyz() -> JSONResponse:
        """Whether a click would be answered at full speed: 503 until the model has warmed up."""
        engine: Engine = app().engine  # type: ignore[attr-defined]
        is_ready = engine.is_warm.is_set()
        return JSONResponse({"ready": is_ready, **engine.status()}, 200 if is_ready else 503)

    return [
        APIRoute("/metrics", metrics, methods=["GET"], tags=["Operations"], response_class=Response),
        APIRoute("/healthz", healthz, methods=["GET"], tags=["Operations"]),
        APIRoute("/readyz", readyz, methods=["GET"], tags=["Operations"], response_model=None),
    ]
