"""The daemon's settings: a TOML file, the environment over it, the command line over both."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from contract.errors import InputError

ENVIRONMENT = "QWEN3VL_EDGE_"


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
        preprocess: auto, lean (pictures without torch and transformers), lean-uint8 (the same into the uint8 graphs)
            or reference (qwen-vl-utils and transformers).

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
    preprocess: str = "auto"

    def __post_init__(self) -> None:
        if not self.server.startswith(("http://", "https://")):
            raise InputError("bad server URL", field="server", expected="http://… or https://…", got=self.server)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is out of range", field=name, expected=f"{low:g} to {high:g}", got=value)


_RANGES = (
    ("port", 0, 65535),
    ("threads", 0, 1024),
    ("max_waiting", 1, 10_000),
    ("deadline_s", 0.1, 86_400),
    ("default_max_tokens", 1, 1_000_000),
    ("cache_mib", 1, 2**30),
    ("max_media_mib", 1, 16_384),
    ("max_body_mib", 1, 16_384),
    ("drain_s", 0, 3600),
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
    kinds = {field.name: str(field.type) for field in fields(DaemonConfig)}
    values: dict[str, Any] = {}
    for source, found in (
        (str(path), _read(path) if path is not None else {}),
        ("the environment", _from_environment(os.environ if environment is None else environment)),
        ("the command line", {name: value for name, value in options.items() if value is not None}),
    ):
        for name, value in found.items():
            if name not in kinds:
                close = difflib.get_close_matches(name, kinds, 1)
                hint = f"Did you mean {close[0]}?" if close else f"Known are: {', '.join(kinds)}."
                raise InputError(f"unknown setting in {source}", field=name, got=name, remedy=hint)
            values[name] = _typed(name, value, kinds[name], source)
    if "bundle" not in values:
        raise InputError(
            "no bundle given", field="bundle", remedy="Make one with: qwen3vl-edge export MODEL --out BUNDLE"
        )
    return DaemonConfig(**values)


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field="--config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error})", field="--config") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name[len(ENVIRONMENT) :].lower(): value for name, value in environment.items() if name.startswith(ENVIRONMENT)
    }


def _typed(name: str, value: Any, kind: str, source: str) -> Any:
    """The value in its field's type; text, as the environment has it, is read as that type."""
    kind = kind.removesuffix(" | None")
    try:
        if kind == "tuple[Path, ...]":
            items = value.split(os.pathsep) if isinstance(value, str) else value
            return tuple(Path(item) for item in items if str(item))
        if kind == "Path":
            return Path(value) if str(value) else None
        if kind == "bool":
            return (
                value
                if isinstance(value, bool)
                else {"1": True, "true": True, "0": False, "false": False}[value.lower()]
            )
        if kind in ("int", "float") and not isinstance(value, bool):
            number = float(value)
            if kind == "int" and number != int(number):
                raise ValueError
            return int(number) if kind == "int" else number
        if kind == "str" and isinstance(value, str):
            return value
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError(f"setting of the wrong type in {source}", field=name, expected=kind, got=repr(value)[:80])
