"""The daemon's settings: a TOML file, overridden by the environment, overridden by the command line."""

# ruff: noqa: RUF009 (setting() returns a dataclasses.field)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.bounded_picture import FREE_PIXELS
from qwen3vl_edge.contract.formats.settings import (
    REQUIRED,
    check_settings,
    gather_settings,
    setting,
    settings_of,
    typed,
)
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig

if TYPE_CHECKING:
    from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
    from qwen3vl_edge.edge_runtime.client.server_credentials import ServerAccess
    from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatLimits
    from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits

ENVIRONMENT = "QWEN3VL_EDGE_"


def _wire_dtypes() -> tuple[str, ...]:
    from qwen3vl_edge.contract.wire.packing import WIRE_DTYPES
    from qwen3vl_edge.edge_runtime.client.bandwidth import AUTO

    return (*WIRE_DTYPES, AUTO)


def _read_cameras(value: Any, source: str) -> tuple[CameraConfig, ...]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise InputError(f"setting of the wrong type in {source}", field="cameras", expected="tables [cameras.NAME]")
    return tuple(_read_camera(name, table, source) for name, table in value.items())


def _read_camera(name: str, table: Mapping[str, Any], source: str) -> CameraConfig:
    declared, where = settings_of(CameraConfig), f"cameras.{name}"
    for key in table:
        if key not in declared:
            raise InputError(f"unknown setting in {source}", field=f"{where}.{key}", expected=", ".join(declared))
    if "source" not in table:
        raise InputError("camera without a source", field=f"{where}.source")
    return CameraConfig(
        name, **{key: typed(f"{where}.{key}", item, declared[key].type, source) for key, item in table.items()}
    )


@dataclass(frozen=True)
class DaemonConfig:
    """Settings of `qwen3vl-edge edge`; one field per setting, named as in the file.

    Raises:
        InputError: a value out of range.
    """

    bundle: Path = setting(REQUIRED, "Bundle folder made by `export`.", option="--bundle", reloadable=True)
    server: str = setting(
        "http://127.0.0.1:8000",
        "URL of the server.",
        option="--server",
        pattern="https?://.*",
        form="http://… or https://…",
    )
    host: str = setting("127.0.0.1", "Address to listen on.", option="--host")
    port: int = setting(8080, "Port of the local API; 0 for any free one.", option="--port", within=(0, 65535))
    unix_socket: Path | None = setting(
        None, "Also listen on this socket, for this machine's users alone.", option="--unix-socket"
    )
    backend: str = setting(
        "auto",
        """Encoder backend: onnxruntime, openvino, openvino-bf16, tensorrt, tensorrt_rtx, pytorch, or auto. auto is
        onnxruntime on the CPU; with a GPU, the first that runs the precision there: an engine built for this GPU,
        pytorch (with model), onnxruntime on CUDA, onnxruntime on the CPU.""",
        option="--backend",
        reloadable=True,
    )
    provider: str = setting(
        "auto",
        """ONNX Runtime provider: cpu, cuda, tensorrt, nv-tensorrt-rtx or openvino; auto is cpu, unless backend = auto
        chooses cuda.""",
        option="--provider",
        reloadable=True,
    )
    target: str | None = setting(
        None, "Which engine of the bundle (TensorRT); the first that fits this GPU by default.", reloadable=True
    )
    precision: str | None = setting(
        None, "Which precision of the bundle; the first by default.", option="--precision", reloadable=True
    )
    threads: int = setting(0, "CPU threads of the encoder; 0 for all.", within=(0, 1024), reloadable=True)
    model: Path | None = setting(None, "Checkpoint folder, for the pytorch backend.", option="--model", reloadable=True)
    device: str = setting(
        "cpu",
        "Where the pytorch backend runs: cpu, cuda or cuda:N.",
        option="--device",
        pattern="cpu|cuda(:[0-9]{1,3})?",
        form="cpu, cuda or cuda:N",
        reloadable=True,
    )
    dtype: str = setting(
        "auto",
        """What the pytorch backend computes in: fp32, fp16, bf16, or auto: the precision, and where none is named fp32
        on the CPU and the checkpoint's own dtype on a GPU.""",
        option="--dtype",
        choices=("auto", "fp32", "fp16", "bf16"),
        reloadable=True,
    )
    self_test: bool = setting(
        True,
        """Each graph encodes the bundle's golden pictures before it first serves on this machine, and is refused where
        it gives other embeddings. What passed is kept in the user's cache folder.""",
        option="--self-test/--no-self-test",
        reloadable=True,
    )
    max_waiting: int = setting(
        16,
        "Requests in flight at once, running or waiting; the next is answered 429. Half of them may fetch from URLs.",
        within=(1, 10_000),
    )
    max_in_flight: int = setting(
        4,
        "All requests in flight may hold this many times what one request may: bytes, values, pixels, tokens.",
        within=(1, 10_000),
    )
    max_in_flight_per_client: int = setting(
        2, "The requests of one client in flight: the same, as a multiple of one request's limits.", within=(1, 10_000)
    )
    deadline_s: float = setting(
        300.0, "Seconds for the network part of a request, retries included.", within=(0.1, 86_400)
    )
    default_max_tokens: int = setting(
        512, "Most tokens of an answer, where the request names no limit.", within=(1, 1_000_000)
    )
    cache: Path | None = setting(
        None, "Folder to keep embeddings in; without one they are not kept.", option="--cache", reloadable=True
    )
    cache_mib: int = setting(1024, "Size limit of the cache folder, in MiB.", within=(1, 2**30), reloadable=True)
    media_folders: tuple[Path, ...] = setting(
        (),
        "Folders under which clients may name files; without one, none.",
        option="--media-folder",
        reloadable=True,
    )
    allow_private_urls: bool = setting(False, "URLs may lead to addresses that are not public.", reloadable=True)
    fetch_timeout_s: float = setting(
        30.0,
        "Seconds in which all pictures and clips of a request must have been fetched from their URLs.",
        within=(0.1, 3600),
        reloadable=True,
    )
    max_media_mib: int = setting(64, "Largest picture or clip, in MiB.", within=(1, 16_384), reloadable=True)
    max_body_mib: int = setting(
        32,
        "Largest request to the local API, in MiB, with all that it names by URL. Base64 adds a third: by default a "
        "clip may have 24 MiB in it. Files in media_folders do not count.",
        within=(1, 16_384),
    )
    max_json_values: int = setting(
        50_000, "Most values of a request's JSON; a list or an object counts as eight.", within=(100, 10**9)
    )
    max_text_kib: int = setting(
        256,
        "Most text of a request, in KiB of UTF-8: by default 8 bytes for each of a server's 32,768 tokens.",
        within=(1, 2**20),
    )
    max_media: int = setting(64, "Most pictures and clips of a request.", within=(0, 65_536))
    max_pixels: int = setting(100_000_000, "Most pixels of a request's pictures together.", within=(1, 10**10))
    max_picture_pixels: int = setting(
        FREE_PIXELS,
        """Pixels that any picture, and each frame of a clip, may have: 4K by default. A picture may also have 10 for
        each byte of its file. A JPEG file above it is decoded at a half, a quarter or an eighth of its size, and the
        answer says so; others are refused.""",
        within=(1, 10**8),
        reloadable=True,
    )
    max_clip_pixels: int = setting(
        1_600_000_000,
        "Most pixels of all frames that are sampled from a request's clips: by default 768 frames in 1080p.",
        within=(1, 10**12),
        reloadable=True,
    )
    max_visual_tokens: int = setting(
        16_384,
        "Most visual tokens of a request: as many as a server's setting of this name.",
        within=(1, 2**24),
    )
    exif_orientation: bool = setting(
        True,
        "Turn pictures as their EXIF orientation says; false leaves their rows as the sensor wrote them.",
        reloadable=True,
    )
    stall_s: float = setting(
        120.0,
        """Seconds that the pictures and clips of a request may take to be prepared; and seconds of one step of
        preparing or encoding after which `/readyz` answers 503. After five times as long systemd's watchdog is no
        longer fed.""",
        within=(0.1, 86_400),
    )
    head_timeout_s: float = setting(
        10.0, "Seconds that a client may take for the head of a request.", within=(0.01, 3600)
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
        256, "The same of one address; the Unix socket has none.", within=(1, 1_000_000)
    )
    drain_s: int = setting(30, "Seconds that running requests get to finish after SIGTERM.", within=(0, 3600))
    log_format: str = setting(
        "text", "Format of the log: text, or json with one object a line.", choices=("text", "json")
    )
    log_prompts: bool = setting(False, "Log prompts and answers; pictures are never logged.")
    send_by_hash: bool = setting(
        True, "Name embeddings that the server holds by their hash, and do not send them again."
    )
    server_kind: str = setting(
        "qwen3vl",
        "qwen3vl for this project's server, or openai for a vLLM with --enable-mm-embeds.",
        option="--server-kind",
        choices=("qwen3vl", "openai"),
    )
    server_model: str = setting(
        "", "The foreign server's name of the model; empty for the only one it serves.", option="--server-model"
    )
    server_api_key: str = setting(
        "", "Bearer token for the server; it is kept out of logs.", form="visible ASCII", secret=True
    )
    server_ca: Path | None = setting(
        None, "PEM file of the only authorities that the server's certificate may come from."
    )
    server_cert: Path | None = setting(None, "PEM file of this device's certificate, for a server that requires one.")
    server_key: Path | None = setting(None, "PEM file of that certificate's key.")
    page: bool = setting(True, "Serve a web page for questions at `/`.")
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "Names, beside localhost and this machine's own, by which browsers may reach the local API.",
        pattern=r"[\w.-]+",
        form="a name without scheme and port",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        "Web pages of other servers that may use the local API.",
        pattern=r"https?://[^/\s*]+",
        form="scheme and host, such as https://example.org",
    )
    stack: bool = setting(
        True, "Batch the images and clips of a request that have one size in one encoder run.", reloadable=True
    )
    cameras: tuple[CameraConfig, ...] = setting(
        (),
        "Cameras, which messages name as `camera:NAME`.",
        form="tables [cameras.NAME]",
        file_only=True,
        reloadable=True,
        read=_read_cameras,
    )
    preprocess: str = setting(
        "auto",
        """auto, lean (without torch and transformers), lean-uint8 (the same into the uint8 graphs) or
        reference (qwen-vl-utils and transformers).""",
        option="--preprocess",
        reloadable=True,
    )
    clip_seconds: str = setting(
        "average",
        """Seconds that the prompt gives for a clip's frames. average: a frame's number by the clip's average rate, as
        upstream computes them; where the rate varies, answers say how far off that is. shown: when the frame is
        shown.""",
        choices=("average", "shown"),
        reloadable=True,
    )
    wire_dtype: str = setting(
        "fp16",
        """Type of the embeddings on the wire. A packing (fp8, int8, int8-int4, int4) sends fewer bytes and changes the
        embeddings a little, which every answer reports. basis-int8 and basis-int4 send coefficients in the bundle's
        basis (`fit-basis`), which the server must have too. auto sends fp16 as long as the link sends it within
        wire_target_s, else int8, else int4; values beyond float16's range as fp32, or bf16 where the server's model
        has that type.""",
        choices=_wire_dtypes,
    )
    wire_target_s: float = setting(
        1.0,
        "Seconds that sending the embeddings of a request may take before wire_dtype = auto sends fewer bytes.",
        within=(0.001, 3600),
    )
    wire_zstd: bool = setting(False, "Compress bodies, without loss.")
    spool: Path | None = setting(
        None, "File that keeps jobs (`/v1/jobs`) until they are answered; without it there are none."
    )
    spool_mib: int = setting(1024, "Size limit of the spool's requests and answers, in MiB.", within=(1, 2**30))
    spool_jobs: int = setting(1000, "Jobs that may wait; the next is answered 429.", within=(1, 1_000_000))
    job_concurrency: int = setting(1, "Jobs sent at a time.", within=(1, 64))
    job_deadline_s: float = setting(
        86_400.0, "Seconds after which a job that was not answered expires.", within=(0.1, 366 * 86_400)
    )
    job_keep_s: float = setting(
        86_400.0, "Seconds for which the result of an ended job can be fetched.", within=(0, 366 * 86_400)
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.server_kind == "openai":
            self._check_foreign_wire()
        _ = self.server_access  # a token that no header can carry fails at start, not at the first request

    def _check_foreign_wire(self) -> None:
        from qwen3vl_edge.contract.wire.packing import BASIS_PACKINGS, PACKINGS

        if self.wire_dtype in (*PACKINGS, *BASIS_PACKINGS):  # auto packs nothing where no link is measured
            raise InputError(
                "a foreign server takes no packed embeddings",
                field="wire_dtype",
                expected="auto, fp16 or fp32",
                got=self.wire_dtype,
            )
        if self.wire_zstd:
            raise InputError("a foreign server takes no compressed bodies", field="wire_zstd", expected="false")

    @property
    def media_limits(self) -> MediaLimits:
        """Limits of the pictures and clips of one request."""
        from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits

        return MediaLimits(
            self.max_media, self.max_pixels, self.max_picture_pixels, self.max_clip_pixels, self.max_visual_tokens
        )

    @property
    def chat_limits(self) -> ChatLimits:
        """Limits of the JSON of one request."""
        from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatLimits

        return ChatLimits(self.max_json_values, self.max_text_kib * 1024, self.max_media)

    @property
    def connection_limits(self) -> ConnectionLimits:
        """Limits of the connections to the local API."""
        from qwen3vl_edge.contract.http.connection_table import ConnectionLimits

        return ConnectionLimits(
            self.max_connections, self.max_connections_per_address, self.head_timeout_s, self.write_timeout_s
        )

    @property
    def server_access(self) -> ServerAccess:
        """Token and certificates for the server, and the authorities that its certificate is checked with."""
        from qwen3vl_edge.edge_runtime.client.server_credentials import ServerAccess

        return ServerAccess(self.server_api_key, self.server_ca, self.server_cert, self.server_key)


def load_config(
    path: Path | None, options: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> DaemonConfig:
    """Settings of a daemon.

    Args:
        path: TOML file, or None.
        options: of the command line, None where not given; they override the others.
        environment: os.environ by default; QWEN3VL_EDGE_PORT=8081 sets `port`.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, of the wrong type or out of range; names it
            and where it came from.
    """
    values = gather_settings(DaemonConfig, path, options, environment, ENVIRONMENT)
    if "bundle" not in values:
        raise InputError(
            "no bundle given", field="bundle", remedy="Make one with: qwen3vl-edge export MODEL --out BUNDLE"
        )
    return DaemonConfig(**values)
