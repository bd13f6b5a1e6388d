"""The sizes that slabs and decode steps come in: few, so that what is made for a size is used again."""

from __future__ import annotations

from collections.abc import Iterable

_FIRST_COLUMNS = 256
_FIRST_TOKENS = 4096


def columns_for(needed: int) -> int:
    """The least of 256, 384, 512, 768, 1024, 1536 ... that holds so many columns: at most half of it is unused."""
    size = _FIRST_COLUMNS
    while size < needed:
        size *= 2
    three_quarters = size * 3 // 4
    return three_quarters if needed <= three_quarters and size > _FIRST_COLUMNS else size


def rows_for(needed: int, most: int) -> int:
    """The least power of two that holds so many rows, at most `most`."""
    size = 1
    while size < needed:
        size *= 2
    return min(size, max(most, needed))


def slab_columns(rows: int, needed: int, max_tokens: int) -> int:
    """Columns of a slab for so many rows: a size of the table, or just what is needed where that exceeds the limit."""
    return max(needed, min(columns_for(needed), max_tokens // rows))


def capture_order(sizes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rows and columns to capture, the most memory first: what is captured is lost when the memory grows."""
    return sorted(sizes, key=lambda size: size[0] * columns_for(size[1]), reverse=True)


def slab_tokens(needed: int, max_tokens: int) -> int:
    """Tokens that a slab's memory holds: doubled from 4096 on up to the limit, which a single long row may exceed."""
    size = _FIRST_TOKENS
    while size < needed:
        size *= 2
    return max(needed, min(size, max_tokens))
