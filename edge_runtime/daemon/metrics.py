"""Prometheus metrics of one daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from qwen3vl_edge.contract.http.deprecated_metrics import DeprecatedAliases
from qwen3vl_edge.contract.http.ledger import Ledger
from qwen3vl_edge.contract.machine.resident_memory import resident_bytes
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.edge_runtime.daemon.concurrency import ConcurrencyLimit
from qwen3vl_edge.edge_runtime.daemon.encode_pipeline import EncodePipeline
from qwen3vl_edge.edge_runtime.daemon.jobs.job import STATUSES, Counts
from qwen3vl_edge.edge_runtime.daemon.sensors import powers, temperatures
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt
from qwen3vl_edge.edge_runtime.encoder.embedding_cache import EmbeddingCache

PREFIX = "qwen3vl_edge_device"
# Old name to new, both without the prefix; the old ones go with the next release.
RENAMED = {
    "seconds": "stage_seconds",
    "saved_bytes_total": "upload_bytes_avoided_total",
    "cache_hits": "embedding_cache_hits_total",
    "cache_misses": "embedding_cache_misses_total",
    "cache_bytes": "embedding_cache_bytes",
    "under_way": "requests_in_flight",
    "resident_bytes": "resident_memory_bytes",
    "engine_memory_bytes": "encoder_memory_bytes",
    "camera_fps_seen": "camera_source_fps",
    "camera_frames_seen": "camera_frames_received_total",
    "camera_frames_sampled": "camera_frames_sampled_total",
    "camera_last_frame_age_s": "camera_last_frame_age_seconds",
    "camera_patches_encoded": "camera_patches_encoded_total",
    "camera_patches_unencoded": "camera_patches_unencoded_total",
    "camera_reconnects": "camera_reconnects_total",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """The daemon's counters, in a registry of their own.

    Args:
        pipeline: called at each scrape; None while the daemon starts.
    """

    def __init__(self, pipeline: Callable[[], EncodePipeline | None], concurrency: ConcurrencyLimit) -> None:
        self._pipeline = pipeline
        registry = self._current = CollectorRegistry()
        self.requests = Counter(f"{PREFIX}_requests", "HTTP requests", ["endpoint", "status"], registry=registry)
        self.media = Counter(
            f"{PREFIX}_media",
            "Images and clips by what served them, and by the grid of their fixed graph (split: of several; dynamic: "
            "any other)",
            ["grid", "graph"],
            registry=registry,
        )
        self.distortion = Histogram(
            f"{PREFIX}_distortion",
            "Change of aspect ratio by the bucket; 0 is none",
            buckets=_SHARES,
            registry=registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}_stage_seconds",
            "Seconds by stage: preprocess, encode (one image or clip), first_token, generate",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.sent = Counter(f"{PREFIX}_sent_bytes", "Bytes of request bodies sent to the server", registry=registry)
        self.by_hash = Counter(f"{PREFIX}_media_by_hash", "Media sent by hash alone", registry=registry)
        self.saved = Counter(
            f"{PREFIX}_upload_bytes_avoided", "Bytes of embeddings not uploaded again", registry=registry
        )
        for name, what, now in (
            ("requests_in_flight", "Requests in flight", lambda: concurrency.in_flight),
            ("resident_memory_bytes", "Resident memory of the daemon", resident_bytes),
        ):
            Gauge(f"{PREFIX}_{name}", what, registry=registry).set_function(now)
        memory = Gauge(f"{PREFIX}_encoder_memory_bytes", "Memory of the encoder by place", ["place"], registry=registry)
        for place in ("host", "device"):
            memory.labels(place).set_function(_reader(pipeline, partial(_engine_memory, place)))
        self.reloads = Counter(f"{PREFIX}_reloads", "Reloads by result", ["result"], registry=registry)
        registry.register(_SensorCollector())
        registry.register(_CacheCollector(pipeline))
        self.registry = CollectorRegistry()
        old_names = {f"{PREFIX}_{old}": f"{PREFIX}_{new}" for old, new in RENAMED.items()}
        self.registry.register(DeprecatedAliases(registry, old_names))

    def register(self, collector: Collector) -> None:
        """Also export what this collects."""
        self._current.register(collector)

    def watch_spool(self, counts: Callable[[], Counts], unreadable: Callable[[], int] = lambda: 0) -> None:
        """Also show the spool, as it is at each scrape."""
        jobs = Gauge(f"{PREFIX}_jobs", "Jobs in the spool by status", ["status"], registry=self._current)
        for status in STATUSES:
            jobs.labels(status).set_function(partial(_jobs, counts, status))
        size = Gauge(f"{PREFIX}_spool_bytes", "Bytes of requests and answers in the spool", registry=self._current)
        size.set_function(lambda: float(counts().bytes))
        lost = Gauge(f"{PREFIX}_jobs_unreadable", "Jobs that cannot be read from the disk", registry=self._current)
        lost.set_function(lambda: float(unreadable()))

    def watch_ledger(self, ledger: Ledger) -> None:
        """Also show what the requests in flight hold."""
        held = Gauge(f"{PREFIX}_held_in_flight", "What requests in flight hold", ["resource"], registry=self._current)
        for name in ledger.held:
            held.labels(name.lower().replace(" ", "_")).set_function(partial(_held, ledger, name))

    def encoded(self, prompt: EncodedPrompt) -> None:
        """Add the cost of a request on this device."""
        if prompt.request.media:
            self.seconds.labels("preprocess").observe(prompt.timings.preprocess)
        for item, seconds in zip(prompt.request.media, prompt.timings.encode, strict=True):
            graph = "cache" if item.origin.get("cached") else "fixed" if item.origin["fixed"] else "dynamic"
            self.media.labels(self._grid(item), graph).inc()
            self.distortion.observe(item.origin["distortion"])
            self.seconds.labels("encode").observe(seconds)

    def _grid(self, item: MediaEmbeddings) -> str:
        """One of the bundle's buckets, or a word: clients choose any other size, and each label is kept for good."""
        pipeline = self._pipeline()
        if not item.origin["fixed"] or pipeline is None:
            return "dynamic"
        return str(item.grid) if item.grid in pipeline.edge.encoder.serves.buckets else "split"


def _held(ledger: Ledger, name: str) -> float:
    return float(ledger.held[name])


def _engine_memory(place: str, pipeline: EncodePipeline) -> float:
    return float(pipeline.engine_memory[place])


def _jobs(counts: Callable[[], Counts], status: str) -> float:
    return float(counts().jobs.get(status, 0))


class _CacheCollector(Collector):
    """The encoder's embedding cache, read at each scrape; zeros where there is none."""

    def __init__(self, pipeline: Callable[[], EncodePipeline | None]) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterator[Metric]:
        pipeline = self._pipeline()
        cache: EmbeddingCache | None = None if pipeline is None else pipeline.edge.cache
        for name, what, count in (
            ("hits", "Embeddings found in the cache", 0 if cache is None else cache.hits),
            ("misses", "Embeddings not found in the cache", 0 if cache is None else cache.misses),
        ):
            yield CounterMetricFamily(f"{PREFIX}_embedding_cache_{name}", what, count)
        size = 0 if cache is None else cache.bytes
        yield GaugeMetricFamily(f"{PREFIX}_embedding_cache_bytes", "Bytes of embeddings in the cache on disk", size)


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
