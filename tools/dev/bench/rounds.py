"""The order of what runs in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rotated(items: Sequence[T], number: int) -> list[T]:
    """All of them, each round beginning with another: none is always first, or always after the same one."""
    start = number % len(items)
    return [*items[start:], *items[:start]]
