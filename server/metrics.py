"""Prometheus metrics of one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwen3vl_edge.contract.http.deprecated_metrics import DeprecatedAliases
from qwen3vl_edge.contract.http.ledger import Ledger
from qwen3vl_edge.server.embeddings.store import EmbeddingStore

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import EngineStats, GenerateResult

PREFIX = "qwen3vl_edge"
# Old name to new, both without the prefix; the next release removes the old ones.
RENAMED = {
    "running": "requests_running",
    "kv_tokens": "kv_cache_tokens",
    "kv_bytes": "kv_cache_bytes",
    "kept_kv_bytes": "prefix_cache_bytes",
    "reused_tokens_total": "prefix_cache_hit_tokens_total",
    "step_seconds_now": "current_step_seconds",
    "steps_total": "decode_steps_total",
    "step_rows_total": "decode_step_requests_total",
    "time_between_tokens_seconds": "time_per_output_token_seconds",
    "held_hits": "embedding_store_hits_total",
    "held_misses": "embedding_store_misses_total",
    "held_bytes": "embedding_store_bytes",
    "held_disk_hits": "embedding_disk_hits_total",
    "held_disk_damaged": "embedding_disk_corrupt_files_total",
    "held_disk_bytes": "embedding_disk_bytes",
}
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class EngineCollector(Collector):
    """`EngineStats`, read at each scrape; nothing while the engine loads."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        for name, what, value in (
            ("queue_depth", "Requests that wait in the queue", stats.waiting),
            ("requests_running", "Requests in prefill or decode", stats.running),
            ("kv_cache_tokens", "Tokens in the KV cache of running requests, padding included", stats.kv_tokens),
            ("kv_cache_bytes", "Bytes of the KV cache of running requests", stats.kv_bytes),
            ("kv_cache_memory_bytes", "Bytes of memory made for the KV cache, in use or not", stats.slab_bytes),
            ("prefix_cache_bytes", "Bytes of keys and values kept from ended requests", stats.kept_bytes),
            ("current_step_seconds", "Seconds since the current engine step began, 0 without one", stats.stalled_s),
        ):
            yield _gauge(name, what, value)
        for name, what, value in (
            ("prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache", stats.reused_tokens),
            ("decode_steps", "Decode steps", stats.steps),
            ("decode_step_requests", "Requests summed over decode steps; per step, the mean batch", stats.step_rows),
        ):
            yield _counter(name, what, value)


class StoreCollector(Collector):
    """Statistics of the embedding store, read at each scrape."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        store, disk = self._store, self._store.disk
        yield _counter("embedding_store_hits", "Media sent by hash whose embeddings were held", store.hits)
        yield _counter("embedding_store_misses", "Media sent by hash whose embeddings were not held", store.misses)
        yield _gauge("embedding_store_bytes", "Bytes of embeddings held in memory", store.bytes)
        if disk is not None:
            yield _counter("embedding_disk_hits", "Embeddings read from hold_folder", disk.hits)
            yield _counter("embedding_disk_corrupt_files", "Corrupt files dropped from hold_folder", disk.damaged)
            yield _gauge("embedding_disk_bytes", "Bytes of embeddings in hold_folder", disk.bytes)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", documentation, value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", documentation, value)


class Metrics:
    """The server's metrics, in a registry of their own so that several apps can live in one process.

    Args:
        stats: called at each scrape; None while the engine loads.
        store: embeddings by hash.
        clients: also count tokens by the name of their client; without it no metric names one.
    """

    def __init__(self, stats: Callable[[], EngineStats | None], store: EmbeddingStore, clients: bool = False) -> None:
        current = self._current = CollectorRegistry()
        counter, histogram = partial(_new_counter, current), partial(_new_histogram, current)
        self.requests = counter("requests", "HTTP requests", "endpoint", "status")
        self.received_bytes = counter("received_bytes", "Bytes of request bodies, as received")
        self.tokens = counter("tokens", "Tokens by kind: prompt, visual, generated", "kind")
        self.generations = counter("generations", "Ended generations by finish reason", "finish_reason")
        self.client_tokens: Counter | None = None
        if clients:
            self.client_tokens = counter(
                "client_tokens", "Tokens by client and kind; the name of its token, or empty", "client", "kind"
            )
        self.idempotent_requests = counter(
            "idempotent_requests",
            "Requests with an Idempotency-Key by outcome: started, joined, replayed, conflict",
            "outcome",
        )
        self.generation_seconds = histogram(
            "generation_seconds", "Seconds by phase: queue, prefill (to the first token), decode", _SECONDS, "phase"
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Seconds from arrival in the queue to the first token", _SECONDS
        )
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds", "Mean seconds per token of one answer, after the first", _STEP_SECONDS
        )
        current.register(EngineCollector(stats))
        current.register(StoreCollector(store))
        self.registry = CollectorRegistry()
        old_names = {f"{PREFIX}_{old}": f"{PREFIX}_{new}" for old, new in RENAMED.items()}
        self.registry.register(DeprecatedAliases(current, old_names))

    def watch_ledger(self, ledger: Ledger) -> None:
        """Also export what the requests in flight hold."""
        held = Gauge(f"{PREFIX}_held_in_flight", "What requests in flight hold", ["resource"], registry=self._current)
        for name in ledger.held:
            held.labels(name.lower().replace(" ", "_")).set_function(partial(_held, ledger, name))

    def record(self, client: str, future: Future[GenerateResult]) -> None:
        """Count an ended generation; a callback of its future, so it counts with and without readers."""
        try:
            result = future.result()
        except CancelledError:
            self.generations.labels("cancelled").inc()
            return
        except Exception:
            self.generations.labels("error").inc()
            return
        self.generations.labels(result.finish_reason).inc()
        for kind, count in (
            ("prompt", result.prompt_tokens),
            ("visual", result.visual_tokens),
            ("generated", len(result.generated_ids)),
        ):
            self.tokens.labels(kind).inc(count)
            if self.client_tokens is not None:
                self.client_tokens.labels(client, kind).inc(count)
        timings = result.timings
        if result.generated_ids:
            self.time_to_first_token.observe(timings.queue_s + timings.prefill_s)
        if len(result.generated_ids) > 1:
            self.time_per_output_token.observe(timings.decode_s / (len(result.generated_ids) - 1))
        for phase, value in (("queue", timings.queue_s), ("prefill", timings.prefill_s), ("decode", timings.decode_s)):
            if phase == "queue" or result.generated_ids:
                self.generation_seconds.labels(phase).observe(value)


def _held(ledger: Ledger, name: str) -> float:
    return float(ledger.held[name])


def _new_counter(registry: CollectorRegistry, name: str, documentation: str, *labels: str) -> Counter:
    return Counter(f"{PREFIX}_{name}", documentation, labels, registry=registry)


def _new_histogram(
    registry: CollectorRegistry, name: str, documentation: str, buckets: tuple[float, ...], *labels: str
) -> Histogram:
    return Histogram(f"{PREFIX}_{name}", documentation, labels, buckets=buckets, registry=registry)
