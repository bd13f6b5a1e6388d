"""What a part of a message may say about its picture or clip, as qwen-vl-utils 0.0.14 takes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.pixels.policy import SIDES
from qwen3vl_edge.contract.pixels.processor_arguments import MOST

IMAGE_OPTIONS = ("min_pixels", "max_pixels", *SIDES)
CLIP_OPTIONS = (
    *IMAGE_OPTIONS,
    *("total_pixels", "fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
)
NUMBERS = (*CLIP_OPTIONS, "sample_fps", "raw_fps")
_FROM_ZERO = ("video_start", "video_end")


def check_options(options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Check what a URL's object says beside the URL.

    Args:
        known: names of `IMAGE_OPTIONS` or `CLIP_OPTIONS`; empty where nothing is supported.
        where: path of the object, for errors.

    Raises:
        InputError: an unknown name, or a value that is not such a number.
    """
    known = tuple(known)
    for name in options:
        if name not in known:
            raise InputError(
                f"{where.rpartition('.')[2]} has no option of this name",
                field=f"{where}.{name}"[:120],
                expected=", ".join(("url", "detail", *known)),
                remedy="Leave it out.",
            )
    check_numbers(options, where)


def check_numbers(options: Mapping[str, Any], where: str) -> None:
    """Check the numbers among a part's keys.

    Raises:
        InputError: one that is not such a number, a most below the least, or one of two sides without the other.
    """
    for name in NUMBERS:
        if name in options:
            _check_number(options[name], f"{where}.{name}", from_zero=name in _FROM_ZERO)
    least, most = options.get("min_pixels"), options.get("max_pixels")
    if least is not None and most is not None and least > most:
        raise InputError(
            "max_pixels is below min_pixels", field=f"{where}.max_pixels", expected=f"at least {least}", got=most
        )
    if len(named := [name for name in SIDES if name in options]) == 1:  # upstream ignores it
        raise InputError(
            f"{named[0]} alone gives no size",
            field=f"{where}.{named[0]}",
            expected=" and ".join(SIDES),
            remedy="Give both, or limits in pixels.",
        )


def _check_number(value: Any, where: str, *, from_zero: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    lowest = 0.0 if from_zero else math.ulp(0.0)
    if not number or not lowest <= value <= MOST:
        raise InputError(
            f"{where} is not such a number",
            field=where,
            expected=f"a number {'from' if from_zero else 'above'} 0, up to {MOST}",
            got=repr(value)[:40] if number or isinstance(value, str) else type(value).__name__,
        )
