"""The server's settings: from a TOML file, overridden by the environment, overridden by the command line."""

# ruff: noqa: RUF009 (setting() returns a dataclasses.field)

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import REQUIRED, check_settings, gather_settings, setting
from qwen3vl_edge.contract.http.sender import Proxies
from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, PIXEL_POLICIES

if TYPE_CHECKING:
    from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
    from qwen3vl_edge.contract.http.tls import ServerTls
    from qwen3vl_edge.contract.wire.request import Limits

ENVIRONMENT = "QWEN3VL_SERVER_"
_TABLE = "a table, or a JSON object as text"


def _read_table(value: Any, source: str) -> dict[str, Any]:
    """A table of a TOML file, or a JSON object as text.

    Raises:
        InputError: the value is neither.
    """
    try:
        table = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        table = None
    if not isinstance(table, Mapping):
        raise InputError(
            f"setting of the wrong type in {source}", field="vllm_args", expected=_TABLE, got=repr(value)[:80]
        )
    return dict(table)


@dataclass(frozen=True)
class ServerOptions:
    """Settings of `qwen3vl-edge server`; one field per setting, named as in the file.

    Raises:
        InputError: a value out of range.
    """

    model: str = setting(REQUIRED, "Checkpoint folder or hub id.", option="--model")
    host: str = setting("127.0.0.1", "Address to listen on.", option="--host")
    port: int = setting(
        8000,
        "Port; 0 for any free one. The address is printed once the model is ready.",
        option="--port",
        within=(0, 65535),
    )
    device_map: str = setting(
        "auto", "As transformers' device_map: auto, cpu, cuda, cuda:1, balanced, …", option="--device-map"
    )
    dtype: str = setting(
        "auto",
        "Type of the language model's weights; auto is the checkpoint's.",
        option="--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    attention: str = setting(
        "sdpa",
        "Implementation of attention.",
        option="--attention",
        choices=("sdpa", "eager", "flash_attention_2"),
    )
    max_body_mib: int = setting(256, "Largest body of a request, in MiB.", within=(1, 16_384))
    max_prompt_tokens: int = setting(32_768, "Most tokens of a prompt.", within=(1, 2**24))
    max_media: int = setting(64, "Most pictures and clips of a request.", within=(0, 65_536))
    max_visual_tokens: int = setting(16_384, "Most visual tokens of a request.", within=(0, 2**24))
    max_new_tokens: int = setting(4_096, "Most tokens that a request may generate.", within=(1, 2**24))
    max_queue: int = setting(
        64, "Requests that may wait for their turn; the next is answered 429.", within=(1, 1_000_000)
    )
    max_queue_per_client: int = setting(
        0, "Requests of one client that may wait; 0 for no limit of its own.", within=(0, 1_000_000)
    )
    max_in_flight: int = setting(
        4,
        "All requests in flight may hold this many times what one request may: bytes, values, tokens.",
        within=(1, 10_000),
    )
    max_in_flight_per_client: int = setting(
        2, "The requests of one client in flight: the same, as a multiple of one request's limits.", within=(1, 10_000)
    )
    max_batch: int = setting(8, "Requests that generate at once.", option="--max-batch", within=(1, 4096))
    max_batch_tokens: int = setting(
        65_536,
        """Tokens of their prompts and answers together, padding included: the KV cache takes no more memory than for
        these, or for a single longer request.""",
        within=(1, 2**32),
    )
    capture: bool = setting(
        True,
        """Run decode steps as CUDA graphs, where the model is on one GPU (transformers); false runs them kernel by
        kernel, several times slower.""",
    )
    capture_sizes: tuple[str, ...] = setting(
        (),
        """Steps that are captured at start: rows x tokens of the longest, such as 8x1024; others are at their first
        use, which takes part of a second.""",
        pattern=r"[1-9][0-9]{0,5}x[1-9][0-9]{0,7}",
        form="ROWSxTOKENS, such as 8x1024",
    )
    max_generation_s: float = setting(
        600.0, "Seconds after which a generation ends with 504; waiting is not counted.", within=(0.1, 86_400)
    )
    stall_s: float = setting(
        120.0,
        "Seconds of one step after which the engine counts as stuck: `/readyz` answers 503.",
        within=(0.1, 86_400),
    )
    prefix_cache_mib: int = setting(
        256,
        "Memory for the KV cache of ended requests, for the next turn of a chat, in MiB; 0 stores none.",
        within=(0, 2**24),
    )
    prefix_cache_s: float = setting(600.0, "Seconds since its last use after which it is evicted.", within=(0, 86_400))
    max_json_body_mib: int = setting(
        64,
        "A lower limit for JSON bodies, in MiB: their numbers cost several times their text in memory.",
        within=(1, 16_384),
    )
    max_json_values: int = setting(
        300_000, "Most values of a JSON body; a list or an object counts as eight.", within=(100, 10**9)
    )
    max_chat_values: int = setting(50_000, "The same of a chat, whose embeddings are text.", within=(100, 10**9))
    max_text_kib: int = setting(
        256,
        "Most text of a chat, in KiB of UTF-8: by default 8 bytes for each of its tokens.",
        within=(1, 2**20),
    )
    body_timeout_s: float = setting(60.0, "Seconds that a client may take to send its body.", within=(0.01, 3600))
    head_timeout_s: float = setting(
        10.0,
        "Seconds that a client may take for the TLS handshake, and again for the head of a request.",
        within=(0.01, 3600),
    )
    write_timeout_s: float = setting(
        60.0, "Seconds for which a client may leave an answer unread.", within=(0.1, 86_400)
    )
    max_connections: int = setting(
        1000,
        "Most open connections; for the next one, that which waited longest for its client is closed.",
        within=(1, 1_000_000),
    )
    max_connections_per_address: int = setting(
        256, "The same of one address, other than those of `trusted_proxies`.", within=(1, 1_000_000)
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "Addresses or networks of proxies whose `X-Forwarded-For` names the client; without one it is ignored.",
        form="addresses or networks, such as 10.0.0.7 or 10.0.0.0/24",
    )
    drain_s: int = setting(30, "Seconds in which running requests may finish after SIGTERM.", within=(0, 3600))
    hold_embeddings_mib: int = setting(
        256, "Memory for embeddings that later requests may name by hash, in MiB; 0 stores none.", within=(0, 2**24)
    )
    hold_embeddings_s: float = setting(
        3600.0, "Seconds since their last use after which they are evicted.", within=(0.001, 366 * 86_400)
    )
    wire_basis: tuple[Path, ...] = setting(
        (), "Bases that devices may send embeddings in (`fit-basis`).", option="--wire-basis"
    )
    allow_pixels: bool = setting(
        False,
        "Load the vision encoder too, and accept pictures in chats as well as embeddings.",
        option="--allow-pixels",
    )
    pixel_policy: str = setting(
        CHECKPOINT,
        "Limits of these pictures' sizes: the checkpoint's, or qwen-vl-utils' defaults.",
        choices=tuple(PIXEL_POLICIES),
    )
    exif_orientation: bool = setting(
        True, "Turn these pictures as their EXIF orientation says; false leaves their rows as the sensor wrote them."
    )
    max_pixels: int = setting(50_000_000, "Most pixels of a request's pictures together.", within=(1, 10**9))
    keep_answers_s: float = setting(
        600.0,
        "Seconds for which the answer to a request with an Idempotency-Key is stored, in memory.",
        within=(0, 86_400),
    )
    keep_answers: int = setting(1024, "Most of these answers; the oldest go first.", within=(0, 1_000_000))
    keep_answers_mib: int = setting(32, "Memory for these answers, in MiB; the oldest go first.", within=(0, 2**20))
    abandoned_s: float = setting(
        60.0,
        "Seconds after which a generation with an Idempotency-Key that no client follows is cancelled.",
        within=(0, 86_400),
    )
    hold_folder: Path | None = setting(
        None, "Folder that keeps embeddings on disk too, also through a restart; empty for none."
    )
    hold_disk_mib: int = setting(4096, "Size limit of that folder, in MiB.", within=(1, 2**30))
    hold_disk_s: float = setting(
        7 * 86_400.0, "Seconds since their last use after which embeddings are evicted there.", within=(1, 366 * 86_400)
    )
    tokens_file: Path | None = setting(
        None,
        """TOML file of the clients that may connect (`server-token` adds to it), read again when it changes; without it
        any client may.""",
        option="--tokens-file",
    )
    metrics_token: bool = setting(False, "Require a token at `/metrics` too.")
    metrics_clients: bool = setting(
        False, "Count tokens by client in `/metrics`, which then tells the clients' names to whoever may read it."
    )
    tls_cert: Path | None = setting(None, "Certificate (PEM); the server then serves HTTPS only.", option="--tls-cert")
    tls_key: Path | None = setting(None, "The certificate's key (PEM).", option="--tls-key")
    tls_client_ca: Path | None = setting(
        None, "Authorities (PEM); a client must present a certificate that one of them signed."
    )
    rate_per_minute: float = setting(
        0.0, "Requests of one client, which is a token's name or an address; 0 for no limit.", within=(0, 1e9)
    )
    rate_burst: int = setting(10, "Of these requests, how many may come at once.", within=(1, 1_000_000))
    audit_log: Path | None = setting(
        None, "File of one JSON line per request, without any content; opened again after SIGHUP."
    )
    engine: str = setting(
        "auto",
        """transformers in this process; vllm, also for several GPUs or machines; auto: vllm where it is installed, a
        GPU is present and no setting needs transformers, else transformers.""",
        option="--engine",
        choices=("auto", "transformers", "vllm"),
    )
    tensor_parallel: int = setting(
        1, "GPUs that share each layer (vllm).", option="--tensor-parallel", within=(1, 1024)
    )
    pipeline_parallel: int = setting(
        1, "Groups of layers, each on its own GPUs (vllm).", option="--pipeline-parallel", within=(1, 1024)
    )
    expert_parallel: bool = setting(False, "Spread whole experts over the GPUs (vllm).")
    distributed_backend: str = setting(
        "",
        "uni for one process, mp for one machine, ray for several, empty for vLLM's own choice (vllm).",
        choices=("", "uni", "mp", "ray"),
    )
    gpu_memory_utilization: float = setting(
        0.9, "Part of each GPU's memory for weights and KV cache (vllm).", within=(0.01, 1.0)
    )
    max_model_len: int = setting(
        0, "Most tokens of prompt and answer together; 0 for the model's own limit (vllm).", within=(0, 2**24)
    )
    vllm_args: Mapping[str, Any] = setting(
        {}, "Further `AsyncEngineArgs` by name (vllm).", form=_TABLE, read=_read_table
    )

    def __post_init__(self) -> None:
        check_settings(self)
        Proxies(self.trusted_proxies)
        if self.hold_folder is not None and not self.hold_embeddings_mib:
            raise InputError(
                "hold_folder requires memory to read into", field="hold_embeddings_mib", expected="at least 1", got=0
            )
        if self.allow_pixels and self.engine == "vllm":
            raise InputError(
                "allow_pixels requires the transformers engine",
                field="--allow-pixels",
                got=f"--engine {self.engine}",
                remedy="Leave it out: the device encodes pictures.",
            )
        for rows, tokens in self.captured_sizes:
            if rows > self.max_batch or rows * tokens > self.max_batch_tokens:
                raise InputError(
                    "a step to capture is larger than the batch",
                    field="capture_sizes",
                    expected=f"max_batch ({self.max_batch}) rows, max_batch_tokens ({self.max_batch_tokens}) in all",
                    got=f"{rows}x{tokens}",
                )
        if self.metrics_token and self.tokens_file is None:
            raise InputError("metrics_token requires tokens", field="tokens_file", remedy="Set tokens_file.")

    def most_json_bytes(self, limits: Limits) -> int:
        """Size limit in bytes of a JSON body for these limits."""
        return min(limits.max_body_bytes, self.max_json_body_mib * 2**20)

    @property
    def max_values(self) -> int:
        """Most JSON values of a chat."""
        return min(self.max_chat_values, self.max_json_values)

    @property
    def captured_sizes(self) -> tuple[tuple[int, int], ...]:
        """Rows and tokens of the decode steps that are captured at start."""
        pairs = (size.split("x") for size in self.capture_sizes)
        return tuple((int(rows), int(tokens)) for rows, tokens in pairs)

    @property
    def tls(self) -> ServerTls | None:
        """The certificates, loaded and validated.

        Raises:
            InputError: a certificate or key cannot be used.
        """
        from qwen3vl_edge.contract.http.tls import server_tls

        return server_tls(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def connection_limits(self) -> ConnectionLimits:
        """Limits of the connections."""
        from qwen3vl_edge.contract.http.connection_table import ConnectionLimits

        return ConnectionLimits(
            self.max_connections,
            self.max_connections_per_address,
            self.head_timeout_s,
            self.write_timeout_s,
            self.trusted_proxies,
        )

    @property
    def limits(self) -> Limits:
        """Upper limits of one request."""
        from qwen3vl_edge.contract.wire.request import Limits

        return Limits(
            max_body_bytes=self.max_body_mib * 2**20,
            max_prompt_tokens=self.max_prompt_tokens,
            max_media=self.max_media,
            max_visual_tokens=self.max_visual_tokens,
            max_new_tokens=self.max_new_tokens,
        )


def load_options(
    path: Path | None, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> ServerOptions:
    """Settings of a server.

    Args:
        path: TOML file, or None.
        options: command line options, None if not given; they take precedence.
        environment: os.environ by default; QWEN3VL_SERVER_PORT=8001 sets `port`.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, of the wrong type or out of range; names the
            setting and its source.
    """
    values = gather_settings(ServerOptions, path, options, environment, ENVIRONMENT)
    if "model" not in values:
        raise InputError("no model given", field="model", remedy="Name a checkpoint folder with --model.")
    return ServerOptions(**values)
