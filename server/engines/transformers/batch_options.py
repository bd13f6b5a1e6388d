"""How requests share the transformers engine's model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchOptions:
    """How requests share the model.

    Attributes:
        max_queue: requests that may wait.
        max_queue_per_client: waiting requests of one client; None for no limit per client.
        max_batch: requests that generate at once.
        max_batch_tokens: limit of their prompt and answer tokens together, padding included, which bounds the KV cache;
            a request's states count as the tokens whose keys and values take as many bytes; a single one may exceed it.
        max_seconds: seconds after which a generation fails, not counting the wait in the queue.
        stall_s: seconds of one step after which the engine counts as stuck and rejects requests.
        prefix_bytes: size of the prefix cache; 0 disables it.
        prefix_s: seconds since its last use after which a cached prefix expires.
        capture: run decode steps as CUDA graphs, where the model is on one CUDA device and allows it.
        capture_sizes: rows and columns of the steps that are captured at start; others are on first use.
    """

    max_queue: int = 16
    max_queue_per_client: int | None = None
    max_batch: int = 8
    max_batch_tokens: int = 65_536
    max_seconds: float = 600.0
    stall_s: float = 120.0
    prefix_bytes: int = 0
    prefix_s: float = 600.0
    capture: bool = True
    capture_sizes: tuple[tuple[int, int], ...] = ()
