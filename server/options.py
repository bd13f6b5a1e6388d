"""What a server is started with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import check_ranges, gather_settings
from qwen3vl_edge.contract.http.tls import ServerTls, server_tls
from qwen3vl_edge.contract.wire.request import Limits

ENVIRONMENT = "QWEN3VL_SERVER_"

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
ENGINES = ("transformers", "vllm")
BACKENDS = ("", "uni", "mp", "ray")


@dataclass(frozen=True)
class ServerOptions:
    """Settings of `qwen3vl-edge server`; one field per setting, named as in the file.

    Attributes:
        model: checkpoint folder or hub id.
        port: 0 takes any free port; the address is printed once the model is ready.
        device_map: as transformers' `device_map`: "auto", "cpu", "cuda", "cuda:1", "balanced", …
        dtype: of the language model; "auto" is what the checkpoint says.
        max_body_mib, max_prompt_tokens, max_media, max_visual_tokens, max_new_tokens: the most one request may hold.
        max_queue: requests that may wait for their turn; the next is answered 429.
        max_queue_per_client: of one client; 0 for no limit of its own.
        max_batch: requests that generate at once.
        max_batch_tokens: tokens of their prompts and answers together, padding included.
        max_generation_s: seconds after which a generation is given up with 504, waiting not counted.
        stall_s: seconds of one step after which the engine counts as stuck: `/readyz` answers 503.
        prefix_cache_mib: memory for keys and values of ended requests, for the next turn of a chat; 0 keeps none.
        prefix_cache_s: seconds since their last use that they are kept.
        max_json_body_mib: a lower limit for JSON bodies, whose numbers cost several times their text in memory.
        body_timeout_s: seconds a client may take to send its body.
        drain_s: seconds that running requests get to finish after SIGTERM.
        hold_embeddings_mib: memory for embeddings that later requests may name by hash; 0 holds none.
        hold_embeddings_s: seconds since their last use that they are held.
        hold_folder: folder that keeps the same on disk, also through a restart; empty for none.
        hold_disk_mib: of it. hold_disk_s: seconds since their last use that embeddings stay there.
        wire_basis: files of bases (`qwen3vl-edge fit-basis`) that devices may send embeddings in; several in a list.
        allow_pixels: load the vision tower too, and take pictures in chats as well as embeddings.
        keep_answers_s: seconds for which the answer to a request with an Idempotency-Key is kept, in memory.
        keep_answers, keep_answers_mib: the most of them; the oldest go first.
        abandoned_s: seconds after which a keyed generation that nobody follows is cancelled.
        tokens_file: TOML file of those who are let in (`qwen3vl-edge server-token` adds to it), read anew when it
            changes; empty lets everybody in.
        metrics_token: ask for a token at `/metrics` too.
        tls_cert, tls_key: PEM files; with them the server speaks HTTPS alone.
        tls_client_ca: PEM file; clients must show a certificate that it signed.
        rate_per_minute: requests of one client, which is a token's name or an address; 0 for no limit.
        rate_burst: of them, those that may come at once.
        audit_log: file of one JSON line per request, without any content; opened anew after SIGHUP.
        engine: "transformers" in this process, or "vllm" over several GPUs or machines (docs/guides/server/vllm.md).
        tensor_parallel, pipeline_parallel, expert_parallel: GPUs per layer, groups of layers, experts apart; of vllm.
        distributed_backend: of vllm: "uni" one process, "mp" one machine, "ray" several, empty its own choice.
        gpu_memory_utilization: of vllm, the part of each GPU's memory for weights and keys and values.
        max_model_len: of vllm, tokens of prompt and answer together; 0 for the model's own.
        vllm_args: further `AsyncEngineArgs` by name, as a table or JSON text.

    Raises:
        InputError: a value out of range.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    device_map: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    max_body_mib: int = 256
    max_prompt_tokens: int = 32_768
    max_media: int = 64
    max_visual_tokens: int = 16_384
    max_new_tokens: int = 4_096
    max_queue: int = 64
    max_queue_per_client: int = 0
    max_batch: int = 8
    max_batch_tokens: int = 65_536
    max_generation_s: float = 600.0
    stall_s: float = 120.0
    prefix_cache_mib: int = 256
    prefix_cache_s: float = 600.0
    max_json_body_mib: int = 64
    body_timeout_s: float = 60.0
    drain_s: int = 30
    hold_embeddings_mib: int = 256
    hold_embeddings_s: float = 3600.0
    wire_basis: tuple[Path, ...] = ()
    allow_pixels: bool = False
    keep_answers_s: float = 600.0
    keep_answers: int = 1024
    keep_answers_mib: int = 32
    abandoned_s: float = 60.0
    hold_folder: Path | None = None
    hold_disk_mib: int = 4096
    hold_disk_s: float = 7 * 86_400.0
    tokens_file: Path | None = None
    metrics_token: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    rate_per_minute: float = 0.0
    rate_burst: int = 10
    audit_log: Path | None = None
    engine: str = "transformers"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False
    distributed_backend: str = ""
    gpu_memory_utilization: float = 0.9
    max_model_len: int = 0
    vllm_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("dtype", self.dtype, DTYPES),
            ("attention", self.attention, ATTENTIONS),
            ("engine", self.engine, ENGINES),
            ("distributed_backend", self.distributed_backend, BACKENDS),
        ):
            if value not in known:
                raise InputError(
                    f"unknown {name}", field=f"--{name}", expected=" or ".join(filter(None, known)), got=value
                )
        check_ranges(self, _RANGES)
        if self.hold_folder is not None and not self.hold_embeddings_mib:
            raise InputError(
                "hold_folder needs memory to read into", field="hold_embeddings_mib", expected="at least 1", got=0
            )
        if self.allow_pixels and self.engine != "transformers":
            raise InputError(
                "allow_pixels is for the transformers engine alone",
                field="--allow-pixels",
                got=f"--engine {self.engine}",
                remedy="Leave it out: the device encodes pictures.",
            )
        if self.metrics_token and self.tokens_file is None:
            raise InputError("metrics_token needs tokens to ask for", field="tokens_file", remedy="Set tokens_file.")

    def most_json_bytes(self, limits: Limits) -> int:
        """The longest JSON body that a server with these limits reads."""
        return min(limits.max_body_bytes, self.max_json_body_mib * 2**20)

    @property
    def tls(self) -> ServerTls | None:
        """The certificates, tried out.

        Raises:
            InputError: one cannot be used.
        """
        return server_tls(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def limits(self) -> Limits:
        """The most that one request may hold."""
        return Limits(
            max_body_bytes=self.max_body_mib * 2**20,
            max_prompt_tokens=self.max_prompt_tokens,
            max_media=self.max_media,
            max_visual_tokens=self.max_visual_tokens,
            max_new_tokens=self.max_new_tokens,
        )


_RANGES = (
    ("port", 0, 65535),
    ("max_body_mib", 1, 16_384),
    ("max_prompt_tokens", 1, 2**24),
    ("max_media", 0, 65_536),
    ("max_visual_tokens", 0, 2**24),
    ("max_new_tokens", 1, 2**24),
    ("max_queue", 1, 1_000_000),
    ("max_queue_per_client", 0, 1_000_000),
    ("max_batch", 1, 4096),
    ("max_batch_tokens", 1, 2**32),
    ("max_generation_s", 0.1, 86_400),
    ("stall_s", 0.1, 86_400),
    ("prefix_cache_mib", 0, 2**24),
    ("prefix_cache_s", 0, 86_400),
    ("max_json_body_mib", 1, 16_384),
    ("body_timeout_s", 0.01, 3600),
    ("drain_s", 0, 3600),
    ("hold_embeddings_mib", 0, 2**24),
    ("hold_embeddings_s", 0.001, 366 * 86_400),
    ("hold_disk_mib", 1, 2**30),
    ("hold_disk_s", 1, 366 * 86_400),
    ("rate_per_minute", 0, 1e9),
    ("rate_burst", 1, 1_000_000),
    ("keep_answers_s", 0, 86_400),
    ("keep_answers", 0, 1_000_000),
    ("keep_answers_mib", 0, 2**20),
    ("abandoned_s", 0, 86_400),
    ("tensor_parallel", 1, 1024),
    ("pipeline_parallel", 1, 1024),
    ("gpu_memory_utilization", 0.01, 1.0),
    ("max_model_len", 0, 2**24),
)


def load_options(
    path: Path | None, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> ServerOptions:
    """Settings of a server.

    Args:
        path: TOML file, or None.
        options: of the command line, None where not given; they win.
        environment: os.environ by default; QWEN3VL_SERVER_PORT=8001 sets `port`.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, of the wrong type or out of range; names it
            and where it came from.
    """
    readers = {"vllm_args": _table}
    values = gather_settings(ServerOptions, path, options, environment, ENVIRONMENT, readers)
    if "model" not in values:
        raise InputError("no model given", field="model", remedy="Name a checkpoint folder with --model.")
    return ServerOptions(**values)


def _table(value: Any, source: str) -> dict[str, Any]:
    """A table of a TOML file, or JSON text of one.

    Raises:
        InputError: it is neither.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise InputError(
            f"setting of the wrong type in {source}",
            field="vllm_args",
            expected="a table, or a JSON object as text",
            got=repr(value)[:80],
        )
    return dict(found)
