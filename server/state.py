"""State shared by the routes of one server: settings, the engine once it is loaded, stores and access control."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.server.embeddings.disk import open_disk
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.generation.keyed import KeyedGenerations
from qwen3vl_edge.server.http.access import Guard
from qwen3vl_edge.server.metrics import Metrics
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness


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
    """

    readiness: Readiness
    options: ServerOptions
    bases: Bases
    store: EmbeddingStore
    keyed: KeyedGenerations
    metrics: Metrics
    guard: Guard

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
    metrics = Metrics(readiness.stats, store)
    keyed = KeyedGenerations(options, metrics.idempotent_requests)
    return ServerState(readiness, options, bases, store, keyed, metrics, Guard(options))
