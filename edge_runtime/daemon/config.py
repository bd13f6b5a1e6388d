"""The daemon's settings: a TOML file, the environment over it, the command line over both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import check_ranges, gather_settings, typed
from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, PACKINGS, WIRE_DTYPES
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.client.bandwidth import AUTO
from qwen3vl_edge.edge_runtime.client.server_access import ServerAccess

ENVIRONMENT = "QWEN3VL_EDGE_"
LOG_FORMATS = ("text", "json")
SERVER_KINDS = ("qwen3vl", "openai")


@dataclass(frozen=True)
class DaemonConfig:
    """One field per setting, named as in the file.

    Attributes:
        bundle: folder made by `export`.
        server: URL of the server.
        port: of the local API; 0 for any free one.
        unix_socket: path of a socket that serves the same, for this machine's users alone.
        backend, provider, target, precision, threads, model: as `ask` has them.
        max_waiting: requests that may be under way at once; the next is answered 429.
        deadline_s: seconds for a request's network part, retries included.
        default_max_tokens: of an answer, where the request names none.
        cache: folder of embeddings; empty for none. cache_mib: its size limit.
        media_folders: file URLs are read from these alone.
        allow_private_urls: URLs may lead to addresses that are not public.
        max_media_mib: of one picture or clip.
        max_body_mib: of one request to the local API.
        drain_s: seconds that running requests get after SIGTERM.
        log_format: "text" or "json" (one object a line).
        log_prompts: log what is asked and answered; never a picture.
        send_by_hash: embeddings that the server holds already are named by their hash and not sent again.
        server_kind: "qwen3vl", this project's own, or "openai", a foreign one that takes vLLM's `image_embeds`.
        server_model: the foreign server's name of the model; empty for the only one it serves.
        server_api_key: sent to the server as a bearer token; kept out of logs and of this object's text.
        server_ca: PEM file of the only authorities that an https server's certificate may come from.
        server_cert: PEM file of this device's certificate, for a server that asks for one. server_key: of its key.
        page: serve a page to look at and to ask from at `/`.
        allowed_hosts: names, beside localhost and this machine's own, by which browsers may reach the local API.
        allowed_origins: web pages of other servers that may use it, such as "https://example.org".
        stack: images and clips of a request that have one size share engine runs.
        cameras: one `[cameras.NAME]` table each, named in messages as `camera:NAME`.
        preprocess: auto, lean (pictures without torch and transformers), lean-uint8 (the same into the uint8 graphs)
            or reference (qwen-vl-utils and transformers).
        wire_dtype: fp16, fp32, bf16, or a packing (fp8, int8, int4): fewer bytes, and embeddings moved a little, which
            every answer says. basis-int8, basis-int4: coefficients in the bundle's basis (fit-basis), which the server
            must hold too. auto: fp16 as long as the link brings it within wire_target_s, else int8, else int4.
        wire_target_s: seconds that sending a request's embeddings may take before auto sends fewer bytes.
        wire_zstd: bodies are compressed, without loss.
        spool: file that keeps jobs (`/v1/jobs`) until they are answered; without it there are none.
        spool_mib: of requests and answers in it. spool_jobs: jobs that may wait; the next is answered 429.
        job_concurrency: jobs sent at a time.
        job_deadline_s: seconds after which a job that was not answered expires.
        job_keep_s: seconds for which an ended job can be asked for.

    Raises:
        InputError: a value out of range.
    """

    bundle: Path
    server: str = "http://127.0.0.1:8000"
    host: str = "127.0.0.1"
    port: int = 8080
    unix_socket: Path | None = None
    backend: str = "onnxruntime"
    provider: str = "cpu"
    target: str | None = None
    precision: str | None = None
    threads: int = 0
    model: Path | None = None
    max_waiting: int = 16
    deadline_s: float = 300.0
    default_max_tokens: int = 512
    cache: Path | None = None
    cache_mib: int = 1024
    media_folders: tuple[Path, ...] = ()
    allow_private_urls: bool = False
    max_media_mib: int = 64
    max_body_mib: int = 128
    drain_s: int = 30
    log_format: str = "text"
    log_prompts: bool = False
    send_by_hash: bool = True
    server_kind: str = "qwen3vl"
    server_model: str = ""
    server_api_key: str = field(default="", repr=False)
    server_ca: Path | None = None
    server_cert: Path | None = None
    server_key: Path | None = None
    page: bool = True
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    stack: bool = True
    cameras: tuple[CameraConfig, ...] = ()
    preprocess: str = "auto"
    wire_dtype: str = "fp16"
    wire_target_s: float = 1.0
    wire_zstd: bool = False
    spool: Path | None = None
    spool_mib: int = 1024
    spool_jobs: int = 1000
    job_concurrency: int = 1
    job_deadline_s: float = 86_400.0
    job_keep_s: float = 86_400.0

    def __post_init__(self) -> None:
        if not self.server.startswith(("http://", "https://")):
            raise InputError("bad server URL", field="server", expected="http://… or https://…", got=self.server)
        choices = (("log_format", LOG_FORMATS), ("server_kind", SERVER_KINDS), ("wire_dtype", (*WIRE_DTYPES, AUTO)))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise InputError(
                    f"no such {name}", field=name, expected=" or ".join(known), got=repr(getattr(self, name))[:80]
                )
        if self.server_kind == "openai":
            self._check_foreign_wire()
        for origin in self.allowed_origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                expected = "scheme and host, such as https://example.org"
                raise InputError("bad origin", field="allowed_origins", expected=expected, got=repr(origin)[:80])
        for host in self.allowed_hosts:
            if not re.fullmatch(r"[\w.-]+", host):
                expected = "a name without scheme and port"
                raise InputError("bad host", field="allowed_hosts", expected=expected, got=repr(host)[:80])
        check_ranges(self, _RANGES)
        _ = self.server_access  # a token that cannot be sent is told at once

    def _check_foreign_wire(self) -> None:
        if self.wire_dtype in (*PACKINGS, *BASIS_PACKINGS, AUTO):
            raise InputError(
                "a foreign server takes no packed embeddings",
                field="wire_dtype",
                expected="fp16 or fp32",
                got=self.wire_dtype,
            )
        if self.wire_zstd:
            raise InputError("a foreign server takes no compressed bodies", field="wire_zstd", expected="false")

    @property
    def server_access(self) -> ServerAccess:
        """What the server is shown, and checked with."""
        return ServerAccess(self.server_api_key, self.server_ca, self.server_cert, self.server_key)


_RANGES = (
    ("wire_target_s", 0.001, 3600),
    ("port", 0, 65535),
    ("threads", 0, 1024),
    ("max_waiting", 1, 10_000),
    ("deadline_s", 0.1, 86_400),
    ("default_max_tokens", 1, 1_000_000),
    ("cache_mib", 1, 2**30),
    ("max_media_mib", 1, 16_384),
    ("max_body_mib", 1, 16_384),
    ("drain_s", 0, 3600),
    ("spool_mib", 1, 2**30),
    ("spool_jobs", 1, 1_000_000),
    ("job_concurrency", 1, 64),
    ("job_deadline_s", 0.1, 366 * 86_400),
    ("job_keep_s", 0, 366 * 86_400),
)


def load_config(
    path: Path | None, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> DaemonConfig:
    """Settings of a daemon.

    Args:
        path: TOML file, or None.
        options: of the command line, None where not given; they win.
        environment: os.environ by default; QWEN3VL_EDGE_PORT=8081 sets `port`.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, of the wrong type or out of range; names it
            and where it came from.
    """
    values = gather_settings(DaemonConfig, path, options, environment, ENVIRONMENT, {"cameras": _cameras})
    if "bundle" not in values:
        raise InputError(
            "no bundle given", field="bundle", remedy="Make one with: qwen3vl-edge export MODEL --out BUNDLE"
        )
    return DaemonConfig(**values)


def _cameras(value: Any, source: str) -> tuple[CameraConfig, ...]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise InputError(f"setting of the wrong type in {source}", field="cameras", expected="tables [cameras.NAME]")
    kinds = {field.name: str(field.type) for field in fields(CameraConfig) if field.name != "name"}
    found = []
    for name, table in value.items():
        where = f"cameras.{name}"
        for setting in table:
            if setting not in kinds:
                raise InputError(f"unknown setting in {source}", field=f"{where}.{setting}", expected=", ".join(kinds))
        if "source" not in table:
            raise InputError("camera without a source", field=f"{where}.source")
        found_settings = {key: typed(f"{where}.{key}", item, kinds[key], source) for key, item in table.items()}
        found.append(CameraConfig(name, **found_settings))
    return tuple(found)
