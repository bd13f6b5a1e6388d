"""Build frozen dataclasses from JSON strictly: unknown keys and wrong types are rejected."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from qwen3vl_edge.contract.errors import BundleError

T = TypeVar("T")


def from_json(kind: type[T], value: Any, where: str) -> T:
    """Build `kind` from parsed JSON.

    Raises:
        BundleError: names the path of the key that is missing, unknown or of the wrong type.
    """
    return typing.cast(T, _convert(kind, value, where))


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _wrong(where, kind.__name__, value)
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise BundleError(f"{where} has an unknown key", field=f"{where}.{key}", remedy="Export the bundle again.")
    arguments = {}
    for name, item in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], f"{where}.{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise BundleError(f"{where} lacks a key", field=f"{where}.{name}", remedy="Export the bundle again.")
    return kind(**arguments)


def _union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        if choice is type(None) and value is None:
            return None
        if dataclasses.is_dataclass(choice) and isinstance(value, dict):
            return _dataclass(choice, value, where)
        if choice is not type(None) and (type(value) is choice or (choice is float and type(value) is int)):
            return value
    raise _wrong(where, " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices), value)


def _wrong(where: str, expected: str, value: Any) -> BundleError:
    return BundleError(f"{where} has the wrong type", field=where, expected=expected, got=repr(value)[:60])
