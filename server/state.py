"""State shared by the routes of one server: settings, the engine once it is loaded, stores and access control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from qwen3vl_edge.contract.http.ledger import (
    BODY_BYTES,
    DECOMPRESSED_BYTES,
    JSON_VALUES,
    PIXELS,
    VISUAL_TOKENS,
    Ledger,
    Resource,
)
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.server.embeddings.disk import open_disk
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.generation.keyed import KeyedGenerations
from qwen3vl_edge.server.http.access import Guard
from qwen3vl_edge.server.metrics import Metrics
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness

T = TypeVar("T")
DECODING_THREADS = 2
PARSING_THREADS = 1


@dataclass(frozen=True)
class ServerState:
    """State that routes share.

    Attributes:
        readiness: gets its engine when the model is loaded; until then most routes return 503.
        options: the server's settings.
        bases: bases of packed embeddings, by sha256.
        store: embeddings held by hash.
        keyed: generations and answers by Idempotency-Key.
        guard: access tokens, rate limits and the audit log.
        ledger: what the requests in flight hold.
        decoding: limits the threads that decode binary bodies.
        parsing: limits those that parse JSON.
    """

    readiness: Readiness
    options: ServerOptions
    bases: Bases
    store: EmbeddingStore
    keyed: KeyedGenerations
    metrics: Metrics
    guard: Guard
    ledger: Ledger
    decoding: CapacityLimiter
    parsing: CapacityLimiter

    async def decode(self, work: Callable[[], T]) -> T:
        """Run work on a body in a thread.

        Few threads at once: each holds the interpreter for milliseconds at a time, and the event loop waits for all.
        """
        return await to_thread.run_sync(work, limiter=self.decoding)

    async def parse(self, work: Callable[[], T]) -> T:
        """The same for JSON, one body at a time: a parser holds the interpreter until it is done."""
        return await to_thread.run_sync(work, limiter=self.parsing)

    def close(self) -> None:
        """Release the folder of stored embeddings."""
        self.store.close()


def open_state(readiness: Readiness, options: ServerOptions, bases: Bases = NO_BASES) -> ServerState:
    """Open the state of a new server.

    Raises:
        InputError: a file or folder of the options cannot be used.
    """
    disk = open_disk(options, lambda: readiness.engine.loaded.shape.model_hash)
    store = EmbeddingStore(options.hold_embeddings_mib * 2**20, options.hold_embeddings_s, disk=disk)
    metrics = Metrics(readiness.stats, store, options.metrics_clients)
    keyed = KeyedGenerations(options, metrics.idempotent_requests)
    guard = Guard(options, keyed.unread)
    ledger = open_ledger(options)
    metrics.watch_ledger(ledger)
    decoding, parsing = CapacityLimiter(DECODING_THREADS), CapacityLimiter(PARSING_THREADS)
    return ServerState(readiness, options, bases, store, keyed, metrics, guard, ledger, decoding, parsing)


def open_ledger(options: ServerOptions) -> Ledger:
    """The ledger of a server with these limits."""
    body_bytes = options.max_body_mib * 2**20
    return Ledger(
        [
            Resource(BODY_BYTES, "body", "max_body_mib", body_bytes),
            Resource(DECOMPRESSED_BYTES, "body", "max_body_mib", body_bytes),
            Resource(JSON_VALUES, "body", "max_json_values", options.max_json_values),
            Resource(PIXELS, "messages", "max_pixels", options.max_pixels),
            Resource(VISUAL_TOKENS, "grid_thw", "max_visual_tokens", options.max_visual_tokens),
        ],
        options.max_in_flight_per_client,
        options.max_in_flight,
    )
