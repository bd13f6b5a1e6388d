"""Settings of a long-running program: declared once, read from a TOML file, the environment and the command line.

A program's settings are the fields of a frozen dataclass, each declared with `setting`. The declaration defines the
validation of the TOML file, the environment variable, the command line option with its help, the range check, whether
a reload applies the setting, and its entry in docs/reference/settings.md.

Dataclass fields are used instead of pydantic-settings: the command line builds its options from these declarations,
and `--help` must import nothing heavy; an error must stay one line that names the value's source; and the device has
one dependency less.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from qwen3vl_edge.contract.errors import InputError

T = TypeVar("T")
Reader = Callable[[Any, str], Any]
"""Maps a setting's raw value and its source to the value of its field."""
REQUIRED: Any = MISSING
"""Marks a setting without a default."""
_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting, beside its field's name, type and default.

    Attributes:
        help: one or a few sentences, for `--help` and for the settings page.
        option: command line option, such as "--port"; None for a setting without one.
        within: lowest and highest value.
        choices: the allowed values, or a function that returns them if their module is heavy to import.
        pattern: regular expression that the text, or each text of a tuple, must match as a whole.
        form: description of a valid value, if the type is not enough; errors show it as the expected value.
        reloadable: a reload (SIGHUP) applies it.
        file_only: neither the environment nor the command line can set it.
        read: parser for a field whose type `typed` does not support.
    """

    help: str
    option: str | None = None
    within: tuple[float, float] | None = None
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    pattern: str = ""
    form: str = ""
    reloadable: bool = False
    file_only: bool = False
    read: Reader | None = None

    @property
    def known(self) -> tuple[str, ...]:
        """The allowed values; empty if any value is allowed."""
        return self.choices() if callable(self.choices) else self.choices


def setting(
    default: T,
    help: str,
    *,
    option: str | None = None,
    within: tuple[float, float] | None = None,
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    pattern: str = "",
    form: str = "",
    reloadable: bool = False,
    file_only: bool = False,
    secret: bool = False,
    read: Reader | None = None,
) -> T:
    """A dataclass field with its `Setting`; the arguments are the attributes of `Setting`.

    Args:
        default: REQUIRED for none; a dict is copied for each object.
        secret: leave the value out of the object's repr.
    """
    text = " ".join(help.split())
    declared = {_KEY: Setting(text, option, within, choices, pattern, form, reloadable, file_only, read)}
    if isinstance(default, dict):
        return cast(T, field(default_factory=default.copy, repr=not secret, metadata=declared))
    return field(default=default, repr=not secret, metadata=declared)


@dataclass(frozen=True)
class Declared:
    """A field of a settings dataclass.

    Attributes:
        type: its annotation, without "| None".
        default: None if REQUIRED, too.
    """

    name: str
    type: str
    default: Any
    required: bool
    setting: Setting


def settings_of(kind: type) -> dict[str, Declared]:
    """The settings that a dataclass declares, by name in declaration order."""
    declared = {}
    for item in fields(kind):
        if _KEY in item.metadata:
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            declared[item.name] = Declared(
                item.name,
                str(item.type).removesuffix(" | None"),
                None if default is MISSING else default,
                default is MISSING,
                item.metadata[_KEY],
            )
    return declared


def gather_settings(
    kind: type,
    path: Path | None,
    options: Mapping[str, Any],
    environment: Mapping[str, str] | None,
    prefix: str,
) -> dict[str, Any]:
    """Values for the fields of a dataclass.

    Args:
        kind: the dataclass; its settings are of type str, int, float, bool, Path, a tuple of str or Path, or have
            `read`.
        path: TOML file, or None.
        options: command line options, None if not given; they take precedence.
        environment: None for os.environ; with the prefix QWEN3VL_EDGE_, QWEN3VL_EDGE_PORT=8081 sets `port`.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, of the wrong type or not allowed in its source;
            names the setting and its source.
    """
    declared = settings_of(kind)
    values: dict[str, Any] = {}
    for source, entries in (
        (str(path), read_toml(path) if path is not None else {}),
        ("the environment", _from_environment(os.environ if environment is None else environment, prefix)),
        ("the command line", {name: value for name, value in options.items() if value is not None}),
    ):
        for name, value in entries.items():
            if name not in declared:
                close = difflib.get_close_matches(name, declared, 1)
                hint = f"Did you mean {close[0]}?" if close else f"Known are: {', '.join(declared)}."
                raise InputError(f"unknown setting in {source}", field=name, got=name, remedy=hint)
            item = declared[name]
            if item.setting.file_only and source != str(path):
                remedy = "Set it in the file that --config names."
                raise InputError(
                    f"{name} cannot be set in {source}", field=name, expected=item.setting.form or None, remedy=remedy
                )
            read = item.setting.read
            values[name] = read(value, source) if read is not None else typed(name, value, item.type, source)
    return values


def read_toml(path: Path, field: str = "--config") -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: the file cannot be read or is not TOML; `field` is the setting that names it.
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
    """Convert a value to its field's type; text from the environment is parsed as that type.

    Args:
        kind: as `Declared.type`, such as "int" or "tuple[Path, ...]".

    Raises:
        InputError: the value is not of that type.
    """
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


def check_settings(settings: Any, where: str = "") -> None:
    """Validate the fields of a settings object against their choices, ranges and patterns.

    Args:
        where: prefix of the field that an error names, such as "cameras.door.".

    Raises:
        InputError: a value is not one of the choices, is out of range, or does not match the pattern.
    """
    for name, item in settings_of(type(settings)).items():
        value, declared = getattr(settings, name), item.setting
        if (known := declared.known) and value not in known:
            named = f"{where}{name}" if where else declared.option or name
            expected = " or ".join(filter(None, known))
            raise InputError(f"no such {name}", field=named, expected=expected, got=repr(value)[:80])
        if declared.within is not None and not declared.within[0] <= value <= declared.within[1]:
            expected = "{:g} to {:g}".format(*declared.within)
            raise InputError(f"{name} is out of range", field=f"{where}{name}", expected=expected, got=value)
        for text in (value if isinstance(value, tuple) else (value,)) if declared.pattern else ():
            if not re.fullmatch(declared.pattern, text):
                got = repr(text)[:80]
                raise InputError(f"bad {name}", field=f"{where}{name}", expected=declared.form or None, got=got)
