"""Types of options that several commands share, and the options that come from a program's settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from qwen3vl_edge.contract.formats.settings import Declared, settings_of
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig

F = TypeVar("F", bound=Callable[..., None])
_DAEMON = settings_of(DaemonConfig)


def _help(name: str) -> str:
    """The help of the daemon's setting of that name, for commands that encode without a daemon."""
    return _DAEMON[name].setting.help


BundleOption = Annotated[Path, typer.Option("--bundle", help=_help("bundle"))]
BundleArgument = Annotated[Path, typer.Argument(help=_help("bundle"))]
DataOption = Annotated[Path, typer.Option(help="Folder of pictures and clips, or JSON lines with `messages`.")]
SeedOption = Annotated[int, typer.Option(help="Of the choice among the data.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help=_help("threads"))]
BackendOption = Annotated[str, typer.Option(help=_help("backend"))]
ProviderOption = Annotated[str, typer.Option(help=_help("provider"))]
TargetOption = Annotated[str | None, typer.Option(help=_help("target"))]
PrecisionOption = Annotated[str | None, typer.Option(help=_help("precision"))]
ModelOption = Annotated[Path | None, typer.Option(help=_help("model"))]
DeviceOption = Annotated[str, typer.Option(help=_help("device"))]
DtypeOption = Annotated[str, typer.Option(help=_help("dtype"))]
PreprocessOption = Annotated[str, typer.Option(help=_help("preprocess"))]
SelfTestOption = Annotated[bool, typer.Option(help=_help("self_test"))]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of pictures; generated ones by default.")]
WireOption = Annotated[
    str,
    typer.Option(
        help="fp16, fp32, bf16, auto (fp16, or fp32 beyond its range), or fewer bytes: fp8, int8, int8-int4, "
        "int4, basis-int8, basis-int4."
    ),
]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with any of the settings; options win.")]

# typer's type of an option, by the field's annotation.
_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "Path": Path,
    "tuple[Path, ...]": list[Path],
    "tuple[str, ...]": list[str],
}


def with_settings(kind: type) -> Callable[[F], F]:
    """Decorate a command: one option for each setting of `kind` that declares one, in place of its `**settings`.

    The command receives values by the settings' names, None where an option is not given.
    """

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [_parameter(item) for item in settings_of(kind).values() if item.setting.option is not None]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(item: Declared) -> inspect.Parameter:
    choices = item.setting.choices
    text = item.setting.help
    text += f" One of: {', '.join(filter(None, choices))}." if choices and isinstance(choices, tuple) else ""
    text += " May repeat." if item.type.startswith("tuple") else ""
    shown = str(item.default) if isinstance(item.default, (str, int, float)) and item.default else False
    option = typer.Option(item.setting.option, help=text, show_default=shown)
    # None, not the setting's default: an option that is not given must not win over the file.
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_TYPES[item.type] | None, option],  # type: ignore[valid-type]
    )
