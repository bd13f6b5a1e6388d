"""Settings of a long-running program: a TOML file, the environment over it, the command line over both."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError

Reader = Callable[[Any, str], Any]
"""A setting's value and where it came from, to the value of its field."""


def gather_settings(
    kind: type,
    path: Path | None,
    options: Mapping[str, Any],
    environment: Mapping[str, str] | None,
    prefix: str,
    readers: Mapping[str, Reader] | None = None,
) -> dict[str, Any]:
    """Values for the fields of a dataclass.

    Args:
        kind: the dataclass; one field per setting, of type str, int, float, bool, Path, or a tuple of str or Path.
        path: TOML file, or None.
        options: of the command line, None where not given; they win.
        environment: os.environ where None; with the prefix QWEN3VL_EDGE_, QWEN3VL_EDGE_PORT=8081 sets `port`.
        readers: of settings of other types, by name.

    Raises:
        InputError: the file cannot be read, or a setting is unknown or of the wrong type; names it and where it
            came from.
    """
    kinds = {item.name: str(item.type) for item in fields(kind)}
    readers = readers or {}
    values: dict[str, Any] = {}
    for source, found in (
        (str(path), read_toml(path) if path is not None else {}),
        ("the environment", _from_environment(os.environ if environment is None else environment, prefix)),
        ("the command line", {name: value for name, value in options.items() if value is not None}),
    ):
        for name, value in found.items():
            if name not in kinds:
                close = difflib.get_close_matches(name, kinds, 1)
                hint = f"Did you mean {close[0]}?" if close else f"Known are: {', '.join(kinds)}."
                raise InputError(f"unknown setting in {source}", field=name, got=name, remedy=hint)
            read = readers.get(name)
            values[name] = read(value, source) if read is not None else typed(name, value, kinds[name], source)
    return values


def read_toml(path: Path, field: str = "--config") -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: it cannot be read or is no TOML; `field` is the setting that names it.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field=field) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error})", field=field) from None


def _from_environment(environment: Mapping[str, str], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :].lower(): value for name, value in environment.items() if name.startswith(prefix)}


def typed(name: str, value: Any, kind: str, source: str) -> Any:
    """The value in its field's type; text, as the environment has it, is read as that type.

    Args:
        kind: the field's annotation, such as "int" or "tuple[Path, ...]".

    Raises:
        InputError: it is not of that type.
    """
    kind = kind.removesuffix(" | None")
    try:
        if kind in _READ:
            return _READ[kind](value)
        if kind in ("int", "float") and not isinstance(value, bool):
            number = float(value)
            if kind == "int" and number != int(number):
                raise ValueError
            return int(number) if kind == "int" else number
        if kind == "str" and isinstance(value, str):
            return value
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        pass
    raise InputError(f"setting of the wrong type in {source}", field=name, expected=kind, got=repr(value)[:80])


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else {"1": True, "true": True, "0": False, "false": False}[value.lower()]


_READ: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "Path": lambda value: Path(value) if str(value) else None,
    "Mapping[str, str]": lambda value: {str(key): str(item) for key, item in value.items()},
    "tuple[Path, ...]": lambda value: tuple(
        Path(item) for item in (value.split(os.pathsep) if isinstance(value, str) else value) if str(item)
    ),
    "tuple[str, ...]": lambda value: tuple(
        word.strip() for word in (value.split(",") if isinstance(value, str) else value) if word.strip()
    ),
}


def check_ranges(settings: Any, ranges: tuple[tuple[str, float, float], ...]) -> None:
    """Hold fields against their lowest and highest value.

    Raises:
        InputError: one is out of range.
    """
    for name, low, high in ranges:
        value = getattr(settings, name)
        if not low <= value <= high:
            raise InputError(f"{name} is out of range", field=name, expected=f"{low:g} to {high:g}", got=value)
