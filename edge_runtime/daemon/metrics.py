"""Prometheus metrics of one daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from qwen3vl_edge.edge_runtime.daemon.concurrency import ConcurrencyLimit
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import STATUSES, Counts
from qwen3vl_edge.edge_runtime.daemon.sensors import powers, resident_bytes, temperatures
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt
from qwen3vl_edge.edge_runtime.encoder.embedding_cache import EmbeddingCache

PREFIX = "qwen3vl_edge_device"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """The daemon's counters, in a registry of their own.

    Args:
        pipeline: called at each scrape; None while the daemon starts.
    """

    def __init__(self, pipeline: Callable[[], EncodePipeline | None], concurrency: ConcurrencyLimit) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(f"{PREFIX}_requests", "HTTP requests", ["endpoint", "status"], registry=registry)
        self.media = Counter(
            f"{PREFIX}_media", "Images and clips by grid and by what served them", ["grid", "graph"], registry=registry
        )
        self.distortion = Histogram(
            f"{PREFIX}_distortion",
            "Change of aspect ratio by the bucket; 0 is none",
            buckets=_SHARES,
            registry=registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}_seconds",
            "Seconds by stage: preprocess, encode (one image or clip), first_token, generate",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.sent = Counter(f"{PREFIX}_sent_bytes", "Bytes sent to the server", registry=registry)
        self.by_hash = Counter(f"{PREFIX}_media_by_hash", "Media named by hash and not sent", registry=registry)
        self.saved = Counter(f"{PREFIX}_saved_bytes", "Bytes of the embeddings not sent again", registry=registry)
        for name, what, read in (
            ("cache_hits", "Embeddings found in the cache since start", lambda opened: _cache(opened, "hits")),
            ("cache_misses", "Embeddings not found in the cache since start", lambda opened: _cache(opened, "misses")),
            ("cache_bytes", "Bytes of embeddings on disk", lambda opened: _cache(opened, "bytes")),
        ):
            gauge = Gauge(f"{PREFIX}_{name}", what, registry=registry)
            gauge.set_function(_reader(pipeline, read))
        for name, what, now in (
            ("under_way", "Requests under way", lambda: concurrency.in_flight),
            ("resident_bytes", "Resident memory of the daemon", resident_bytes),
        ):
            Gauge(f"{PREFIX}_{name}", what, registry=registry).set_function(now)
        memory = Gauge(f"{PREFIX}_engine_memory_bytes", "Memory of the engine by place", ["place"], registry=registry)
        for place in ("host", "device"):
            memory.labels(place).set_function(_reader(pipeline, partial(_engine_memory, place)))
        self.reloads = Counter(f"{PREFIX}_reloads", "Reloads by result", ["result"], registry=registry)
        registry.register(_SensorCollector())

    def watch_spool(self, counts: Callable[[], Counts]) -> None:
        """Add gauges of the spool, read at each scrape."""
        jobs = Gauge(f"{PREFIX}_jobs", "Jobs in the spool by status", ["status"], registry=self.registry)
        for status in STATUSES:
            jobs.labels(status).set_function(partial(_jobs, counts, status))
        size = Gauge(f"{PREFIX}_spool_bytes", "Bytes of requests and answers in the spool", registry=self.registry)
        size.set_function(lambda: float(counts().bytes))

    def encoded(self, prompt: EncodedPrompt) -> None:
        """Add the cost of a request on this device."""
        if prompt.request.media:
            self.seconds.labels("preprocess").observe(prompt.timings.preprocess)
        for item, seconds in zip(prompt.request.media, prompt.timings.encode, strict=True):
            graph = "cache" if item.origin.get("cached") else "fixed" if item.origin["fixed"] else "dynamic"
            self.media.labels(str(item.grid), graph).inc()
            self.distortion.observe(item.origin["distortion"])
            self.seconds.labels("encode").observe(seconds)


def _engine_memory(place: str, pipeline: EncodePipeline) -> float:
    return float(pipeline.engine_memory[place])


def _jobs(counts: Callable[[], Counts], status: str) -> float:
    return float(counts().jobs.get(status, 0))


class _SensorCollector(Collector):
    """Temperatures and power, read at each scrape; empty where the device has no sensors."""

    def collect(self) -> Iterator[Metric]:
        for name, what, readings in (
            ("temperature_celsius", "Temperature by thermal zone", temperatures()),
            ("power_watts", "Power by rail", powers()),
        ):
            family = GaugeMetricFamily(f"{PREFIX}_{name}", what, labels=["sensor"])
            for reading in readings:
                family.add_metric([reading.sensor], reading.value)
            yield family


def _reader(
    pipeline: Callable[[], EncodePipeline | None], read: Callable[[EncodePipeline], float]
) -> Callable[[], float]:
    def now() -> float:
        opened = pipeline()
        return 0.0 if opened is None else read(opened)

    return now


def _cache(pipeline: EncodePipeline, name: str) -> float:
    cache: EmbeddingCache | None = pipeline.edge.cache
    return 0.0 if cache is None else float(getattr(cache, name))
