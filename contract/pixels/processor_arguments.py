"""A request's `mm_processor_kwargs`: limits of the processors, as transformers and vLLM take them.

`min_pixels` and `size.shortest_edge` are two names of one limit, and so are `max_pixels` and `size.longest_edge`. Flat,
they are those of pictures and clips; in `images_kwargs` or `videos_kwargs`, of one of them, which goes before. A limit
that is not named stays the checkpoint's (`Qwen3VLMultiModalProcessor._apply_hf_processor_main` of vLLM 0.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.errors import InputError

FIELD = "mm_processor_kwargs"
_NAMES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
_SCOPES = {"image": "images_kwargs", "video": "videos_kwargs"}
MOST = 2**40  # of any number of pixels, seconds or frames in a request


@dataclass(frozen=True)
class Bounds:
    """Limits of one kind of media, None where not named, and where the request has them."""

    lowest: int | None = None
    highest: int | None = None
    lowest_field: str = FIELD
    highest_field: str = FIELD

    @property
    def field(self) -> str:
        """Where the request has one of them."""
        return self.lowest_field if self.highest is None else self.highest_field

    @property
    def given(self) -> bool:
        """Whether one is named."""
        return self.lowest is not None or self.highest is not None

    def over(self, lowest: int, highest: int) -> tuple[int, int]:
        """The named limits, and these where none is."""
        return (
            lowest if self.lowest is None else self.lowest,
            highest if self.highest is None else self.highest,
        )


@dataclass(frozen=True)
class ProcessorArguments:
    """Limits of pictures and of clips."""

    image: Bounds = Bounds()
    video: Bounds = Bounds()


NO_ARGUMENTS = ProcessorArguments()


def read_processor_arguments(value: Mapping[str, Any] | None) -> ProcessorArguments:
    """The limits of a request's `mm_processor_kwargs`.

    Raises:
        InputError: an argument that is not supported, not a number, or named twice with two values.
    """
    if not value:
        return NO_ARGUMENTS
    flat = {name: item for name, item in value.items() if name not in _SCOPES.values()}
    both = _bounds(flat, FIELD)
    found = {}
    for kind, scope in _SCOPES.items():
        own = value.get(scope)
        if own is not None and not isinstance(own, Mapping):
            raise _wrong(f"{FIELD}.{scope}", "an object", own)
        named = _bounds(own or {}, f"{FIELD}.{scope}")
        lowest, highest = named.over(both.lowest or 0, both.highest or 0)
        found[kind] = Bounds(
            lowest or None,
            highest or None,
            both.lowest_field if named.lowest is None else named.lowest_field,
            both.highest_field if named.highest is None else named.highest_field,
        )
        if lowest and highest and lowest > highest:
            raise InputError(
                "the most pixels are below the least",
                field=found[kind].field,
                expected=f"at least {lowest} (min_pixels, size.shortest_edge)",
                got=f"{highest} (max_pixels, size.longest_edge)",
            )
    return ProcessorArguments(found["image"], found["video"])


def _bounds(arguments: Mapping[str, Any], where: str) -> Bounds:
    size = arguments.get("size")
    known = ("size", *_NAMES)
    for name, value in arguments.items():
        if name not in known and value is not None:
            expected = ", ".join((*known, *_SCOPES.values()))
            raise InputError(
                "processor argument is not supported",
                field=f"{where}.{name}"[:120],
                expected=expected,
                remedy="Leave it out; fps and others go beside the clip's URL.",
            )
    if size is not None and (not isinstance(size, Mapping) or set(size) - set(_NAMES.values())):
        raise _wrong(f"{where}.size", "an object of shortest_edge and longest_edge, in pixels", size)
    limits: dict[str, int | None] = {}
    fields = {}
    for name, edge in _NAMES.items():
        places = {f"{where}.{name}": arguments.get(name), f"{where}.size.{edge}": (size or {}).get(edge)}
        named = {place: _number(item, place) for place, item in places.items() if item is not None}
        if len(set(named.values())) > 1:
            raise InputError(
                f"{name} and size.{edge} are one limit and have two values",
                field=f"{where}.{name}",
                expected=str(size[edge]) if size else None,
                got=arguments.get(name),
                remedy="Leave one out.",
            )
        limits[name] = next(iter(named.values()), None)
        fields[name] = next(iter(named), where)
    return Bounds(limits["min_pixels"], limits["max_pixels"], fields["min_pixels"], fields["max_pixels"])


def _number(value: Any, where: str) -> int:
    if type(value) is not int or not 0 < value <= MOST:
        raise _wrong(where, f"a whole number of pixels from 1 to {MOST}", value)
    return value


def _wrong(where: str, expected: str, value: Any) -> InputError:
    return InputError("processor argument is not valid", field=where, expected=expected, got=repr(value)[:40])
