"""Prometheus metrics of one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwen3vl_edge.server.embeddings.store import EmbeddingStore

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import EngineStats, GenerateResult

PREFIX = "qwen3vl_edge"
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class EngineCollector(Collector):
    """The engine's own figures, read at each scrape."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        found = self._stats()
        if found is None:
            return
        for name, what, value in (
            ("queue_depth", "Requests that wait", found.waiting),
            ("running", "Requests that generate", found.running),
            ("kv_tokens", "Tokens whose keys and values are held, padding included", found.kv_tokens),
            ("kv_bytes", "Bytes of those", found.kv_bytes),
            ("kept_kv_bytes", "Bytes of keys and values kept for later requests", found.kept_bytes),
            ("step_seconds_now", "Seconds that the step under way has taken", found.stalled_s),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", what, value)
        for name, what, value in (
            ("reused_tokens", "Prompt tokens that needed no computing", found.reused_tokens),
            ("steps", "Decoding steps", found.steps),
            ("step_rows", "Requests in those steps; over the steps, the mean batch", found.step_rows),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", what, value)


class Metrics:
    """The server's counters, in a registry of their own so that several apps can live in one process.

    Args:
        stats: called at each scrape; None while the engine loads.
        store: embeddings held by hash.
    """

    def __init__(self, stats: Callable[[], EngineStats | None], store: EmbeddingStore) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(f"{PREFIX}_requests", "HTTP requests", ["endpoint", "status"], registry=self.registry)
        told = "Bytes of request bodies, as they came"
        self.received = Counter(f"{PREFIX}_received_bytes", told, registry=self.registry)
        self.tokens = Counter(f"{PREFIX}_tokens", "Tokens by kind", ["kind"], registry=self.registry)
        self.generations = Counter(
            f"{PREFIX}_generations", "Ended generations by finish reason", ["finish_reason"], registry=self.registry
        )
        self.seconds = Histogram(
            f"{PREFIX}_generation_seconds",
            "Seconds of a generation by phase: queue, prefill (to the first token), decode",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token = Histogram(
            f"{PREFIX}_time_to_first_token_seconds",
            "Seconds from a request's arrival in the queue to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.between_tokens = Histogram(
            f"{PREFIX}_time_between_tokens_seconds",
            "Mean seconds between the tokens of one answer",
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self.by_client = Counter(
            f"{PREFIX}_client_tokens",
            "Tokens by client and kind; the client is its token's name, empty where none is asked for",
            ["client", "kind"],
            registry=self.registry,
        )
        self.idempotent = Counter(
            f"{PREFIX}_idempotent_requests",
            "Requests with an Idempotency-Key by outcome: started, joined, replayed, conflict",
            ["outcome"],
            registry=self.registry,
        )
        self.registry.register(EngineCollector(stats))
        for name, what, read in (
            ("held_hits", "Media named by hash and held, since start", lambda: store.hits),
            ("held_misses", "Media named by hash and not held, since start", lambda: store.misses),
            ("held_bytes", "Bytes of embeddings held", lambda: store.bytes),
        ):
            Gauge(f"{PREFIX}_{name}", what, registry=self.registry).set_function(read)
        if (disk := store.disk) is not None:
            for name, what, read in (
                ("held_disk_hits", "Embeddings read from the disk, since start", lambda: disk.hits),
                ("held_disk_damaged", "Files of embeddings dropped because they were altered", lambda: disk.damaged),
                ("held_disk_bytes", "Bytes of embeddings on the disk", lambda: disk.bytes),
            ):
                Gauge(f"{PREFIX}_{name}", what, registry=self.registry).set_function(read)

    def record(self, client: str, future: Future[GenerateResult]) -> None:
        """Count an ended generation; meant as the future's callback, so it counts whoever still listens."""
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
            self.by_client.labels(client, kind).inc(count)
        timings = result.timings
        if result.generated_ids:
            self.first_token.observe(timings.queue_s + timings.prefill_s)
        if len(result.generated_ids) > 1:
            self.between_tokens.observe(timings.decode_s / (len(result.generated_ids) - 1))
        for phase, value in (("queue", timings.queue_s), ("prefill", timings.prefill_s), ("decode", timings.decode_s)):
            if phase == "queue" or result.generated_ids:
                self.seconds.labels(phase).observe(value)
