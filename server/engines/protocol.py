"""What the HTTP side asks of an engine: `submit` a request, of which tokens come, `cancel` it, read its `stats`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Limits, ModelShape
from qwen3vl_edge.server.engines.detokenize import Detokenizer


class EngineDiedError(ServerUnavailableError):
    """It will never answer again."""

    def __init__(self) -> None:
        super().__init__("the engine has died", remedy="Restart the server; its log says why.")


class EngineStuckError(ServerUnavailableError):
    """Its step has gone on for too long; whether it ever ends is not known."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the engine is stuck in a step", got=f"{seconds:.0f} s", remedy="Restart the server.")


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        logprob: natural logarithm of its probability before temperature and cuts; None unless asked for.
        top: the likeliest tokens at this place with theirs, as many as were asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


OnToken = Callable[[Token], None]


@dataclass(frozen=True)
class Timings:
    """Seconds of one generation: waiting, until the first token, and from there to the last."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class GenerateResult:
    """A finished answer.

    Attributes:
        generated_ids: new tokens only, with the end token if there was one.
        text: of those, without special tokens.
        finish_reason: "stop" (end token), "length" or "cancelled".
        prompt_tokens: without masked ones.
        reused_tokens: of the prompt, whose keys and values were held from an earlier request.
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
    """A request that was accepted.

    Attributes:
        future: its result; fails with a ContractError that a client may see, or with a fault of the engine.
        cancel: ends it after the current step, or before it starts; may be called at any time, from any thread.
    """

    future: Future[GenerateResult]
    cancel: Callable[[], None]


@dataclass(frozen=True)
class EngineStats:
    """An engine at one moment, and its sums since start.

    Attributes:
        waiting: requests that have not begun.
        running: requests that generate.
        kv_tokens: tokens whose keys and values are held for running requests.
        kv_bytes: of those, where the engine knows.
        kept_bytes: keys and values kept from ended requests.
        reused_tokens: prompt tokens that needed no computing.
        steps: decoding steps.
        step_rows: requests in those steps, added up; `step_rows / steps` is the mean batch.
        stalled_s: seconds that the step under way has taken, 0 where none is.
        dead: it will never answer again.
    """

    waiting: int = 0
    running: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    kept_bytes: int = 0
    reused_tokens: int = 0
    steps: int = 0
    step_rows: int = 0
    stalled_s: float = 0.0
    dead: bool = False

    def check(self, stall_s: float) -> None:
        """Nothing, while the engine works.

        Raises:
            ServerUnavailableError: it has died, or its step takes longer than `stall_s` seconds.
        """
        if self.dead:
            raise EngineDiedError()
        if self.stalled_s > stall_s:
            raise EngineStuckError(self.stalled_s)


class ServedModel(Protocol):
    """The model as requests see it.

    Attributes:
        shape: what a request's tensors must fit.
        end_ids: token ids that end an answer.
        max_positions: tokens of prompt and answer together.
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
        """Facts for `/readyz` and `/v1/models`: engine, parameters, device, dtype."""
        ...


class Engine(Protocol):
    """Generates; safe to call from several threads."""

    @property
    def loaded(self) -> ServedModel: ...

    @property
    def limits(self) -> Limits: ...

    def check_room(self, client: str = "") -> None:
        """Refuse early what `submit` would refuse.

        Raises:
            QueueFullError: no room, or none for this client.
            ServerUnavailableError: the engine is closed or stalled.
        """
        ...

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        """Check a request against model and limits; returns it without masked tokens.

        Raises:
            ContractError: whatever is wrong with it.
        """
        ...

    def submit(self, request: GenerateRequest, on_token: OnToken | None = None, client: str = "") -> Generation:
        """Queue a request that `prepare` returned.

        Args:
            on_token: called with each new token, in a thread of the engine; must not block.
            client: whose turn it uses; clients with waiting requests take turns.

        Raises:
            QueueFullError, ServerUnavailableError: as `check_room`.
        """
        ...

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for the text of one answer as it grows."""
        ...

    def stats(self) -> EngineStats:
        """How it is now; cheap enough for every scrape."""
        ...

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what runs and waits, and stop."""
        ...
