"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field

from contract.errors import InputError
from contract.request import Limits

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class ServerOptions:
    """Options of `qwen3vl-edge server`.

    Attributes:
        model: checkpoint folder or hub id.
        port: 0 takes any free port; the address is printed once the model is ready.
        device_map: as transformers' `device_map`: "auto", "cpu", "cuda", "cuda:1", "balanced", …
        dtype: of the language model; "auto" is what the checkpoint says.
        limits: the most that one request may hold.
        max_queue: requests that may wait while one generates; the next is answered 429.
        max_json_body_bytes: a lower limit for JSON bodies, whose numbers cost several times their text in memory.
        body_timeout_s: seconds a client may take to send its body.
        graceful_timeout_s: seconds that running requests get to finish after SIGTERM.
        hold_embeddings_mib: memory for embeddings that later requests may name by hash; 0 holds none.
        hold_embeddings_s: seconds since their last use that they are held.
        keep_answers_s: seconds for which the answer to a request with an Idempotency-Key is kept, in memory.
        keep_answers, keep_answers_bytes: the most of them; the oldest go first.
        abandoned_s: seconds after which a keyed generation that nobody follows is cancelled.

    Raises:
        InputError: a value out of range.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    device_map: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    limits: Limits = field(default_factory=Limits)
    max_queue: int = 16
    max_json_body_bytes: int = 64 * 2**20
    body_timeout_s: float = 60.0
    graceful_timeout_s: int = 30
    hold_embeddings_mib: int = 256
    hold_embeddings_s: float = 3600.0
    keep_answers_s: float = 600.0
    keep_answers: int = 1024
    keep_answers_bytes: int = 32 * 2**20
    abandoned_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, DTYPES), ("attention", self.attention, ATTENTIONS)):
            if value not in known:
                raise InputError(f"unknown {name}", field=f"--{name}", expected=" or ".join(known), got=value)
        if not 0 <= self.port <= 65535:
            raise InputError("port is out of range", field="--port", expected="0 to 65535", got=self.port)
        if self.max_queue < 1:
            raise InputError("the queue has no room", field="max_queue", expected="at least 1", got=self.max_queue)
        if self.hold_embeddings_mib < 0 or self.hold_embeddings_s <= 0:
            raise InputError(
                "cannot hold embeddings so",
                field="hold_embeddings_mib",
                expected="hold_embeddings_mib at least 0, hold_embeddings_s above 0",
                got=f"{self.hold_embeddings_mib} MiB, {self.hold_embeddings_s:g} s",
            )
        for name in ("keep_answers_s", "keep_answers", "keep_answers_bytes", "abandoned_s"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is negative", field=name, expected="0 or more", got=getattr(self, name))
