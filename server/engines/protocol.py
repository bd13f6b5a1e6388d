"""The engine protocol that the HTTP side uses: `prepare` and `submit` requests, `cancel` them, read `stats`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, ModelShape
from qwen3vl_edge.server.engines.detokenize import Detokenizer


class EngineDiedError(ServerUnavailableError):
    """The engine has died and will never answer again."""

    def __init__(self) -> None:
        super().__init__("the engine has died", remedy="Restart the server; its log says why.")


class EngineStuckError(ServerUnavailableError):
    """The engine's current step takes too long; it may never end."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the engine is stuck in a step", got=f"{seconds:.0f} s", remedy="Restart the server.")


@dataclass(frozen=True, slots=True)  # the log of a stored answer holds thousands
class Token:
    """One token of an answer.

    Attributes:
        logprob: natural logarithm of its probability before temperature and truncation; None unless requested.
        top: the likeliest tokens at this position with their log-probabilities, as many as requested.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


OnToken = Callable[[Token], None]


@dataclass(frozen=True)
class Timings:
    """Seconds of one generation: in the queue, prefill to the first token, and decode to the last."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class GenerateResult:
    """A finished answer.

    Attributes:
        generated_ids: new tokens only, including the end token if there was one.
        text: their text, without special tokens.
        finish_reason: "stop" (end token), "length" or "cancelled".
        prompt_tokens: prompt length without masked tokens.
        reused_tokens: prompt tokens whose keys and values came from the prefix cache.
    """

    generated_ids: tuple[int, ...]
    text: str
    finish_reason: str
    prompt_tokens: int
    visual_tokens: int
    timings: Timings
    reused_tokens: int = 0


@dataclass(frozen=True)
class Generation:
    """An accepted request.

    Attributes:
        future: its result; fails with a ContractError that a client may see, or with an internal engine error.
        cancel: stops it after the current step, or before it starts; may be called at any time, from any thread.
    """

    future: Future[GenerateResult]
    cancel: Callable[[], None]


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of an engine, with totals since start.

    Attributes:
        waiting: requests in the queue.
        running: requests in prefill or decode.
        kv_tokens: tokens in the KV cache of running requests.
        kv_bytes: their bytes; 0 if the engine does not report them.
        slab_bytes: memory made for the KV cache, in use or not; 0 if the engine does not report it.
        kept_bytes: KV cache bytes kept from ended requests (prefix cache).
        reused_tokens: prompt tokens served from the prefix cache.
        steps: decode steps.
        step_rows: requests summed over those steps; `step_rows / steps` is the mean batch.
        stalled_s: seconds since the current step began, 0 without one.
        dead: the engine will never answer again.
    """

    waiting: int = 0
    running: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    slab_bytes: int = 0
    kept_bytes: int = 0
    reused_tokens: int = 0
    steps: int = 0
    step_rows: int = 0
    stalled_s: float = 0.0
    dead: bool = False

    def check(self, stall_s: float) -> None:
        """Raise if the engine is dead or stuck.

        Raises:
            ServerUnavailableError: it has died, or its step takes longer than `stall_s` seconds.
        """
        if self.dead:
            raise EngineDiedError()
        if self.stalled_s > stall_s:
            raise EngineStuckError(self.stalled_s)


class ServedModel(Protocol):
    """The served model, for validation of requests and for status routes.

    Attributes:
        shape: what a request's tensors must match.
        end_ids: token ids that end an answer.
        max_positions: most tokens of prompt and answer together.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def shape(self) -> ModelShape: ...

    @property
    def end_ids(self) -> tuple[int, ...]: ...

    @property
    def max_positions(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Details for `/readyz` and `/v1/models`: engine, parameters, device, dtype."""
        ...


class Engine(Protocol):
    """Generates answers; safe to call from several threads."""

    @property
    def loaded(self) -> ServedModel: ...

    @property
    def limits(self) -> Limits: ...

    def check_room(self, client: str = "") -> None:
        """Reject early what `submit` would reject.

        Raises:
            QueueFullError: the queue is full, or full for this client.
            ServerUnavailableError: the engine is closed or stalled.
        """
        ...

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        """Validate a request against model and limits; returns it without masked tokens.

        Raises:
            ContractError: the request is invalid.
        """
        ...

    def submit(self, request: GenerateRequest, on_token: OnToken | None = None, client: str = "") -> Generation:
        """Queue a request that `prepare` returned.

        Args:
            on_token: called with each new token, in a thread of the engine; must not block.
            client: whose queue turn it uses; clients with waiting requests take turns.

        Raises:
            QueueFullError, ServerUnavailableError: as `check_room`.
        """
        ...

    def detokenizer(self) -> Detokenizer:
        """A new detokenizer for one answer."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot of the engine; cheap enough for every scrape."""
        ...

    def close(self, timeout: float = 10.0) -> None:
        """Cancel running and waiting requests, and stop."""
        ...
