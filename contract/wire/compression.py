"""Bodies compressed losslessly with zstd (RFC 8878), with `Content-Encoding: zstd`.

The library is optional on both sides: a server without it rejects such a body, and a device without it sends none.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from qwen3vl_edge.contract.errors import InputError, LimitError, WireError
from qwen3vl_edge.contract.wire.wire_body import WireBody

ZSTD = "zstd"
LEVEL = 1  # higher levels cost a device more time than they save on any link where compression pays
MAX_WINDOW_BYTES = 8 * 2**20  # the largest window that RFC 9659 allows
# A body may grow by this factor, and any body to FREE_BYTES; embeddings shrink to 0.6 at the least (measured.md).
MAX_RATIO = 32
FREE_BYTES = 4 * 2**20
_BLOCK_BYTES = 2**20


def most_decompressed(sent: int) -> int:
    """The most bytes that a compressed body of `sent` bytes may have decompressed."""
    return max(FREE_BYTES, MAX_RATIO * sent)


def compress(body: WireBody) -> WireBody:
    """Compress a body into one buffer; a body that shrinks so far that servers refuse to expand it stays as it is.

    Raises:
        InputError: the library is not installed.
    """
    compressor = _library("compress").ZstdCompressor(level=LEVEL).compressobj()
    parts = [compressor.compress(buffer) for buffer in body.buffers]
    packed = b"".join([*parts, compressor.flush()])
    if body.size > most_decompressed(len(packed)):
        return body
    return replace(body, buffers=(memoryview(packed),), encoding=ZSTD)


def require_zstd() -> None:
    """Raises: InputError: the library is not installed."""
    _library("compress")


def decompress(
    body: bytes | bytearray | memoryview, limit: int, claim: Callable[[int], None] = lambda _: None
) -> memoryview:
    """Decompress a body block by block; no more than the returned bytes and the window are in memory.

    Args:
        claim: called with the size of each block, once it is decompressed and before the next; may raise.

    Raises:
        LimitError: the decompressed body is longer than `limit`, or than `most_decompressed` of its size.
        WireError: the body is not zstd, or needs a larger window than MAX_WINDOW_BYTES.
        InputError: the library is not installed.
    """
    library = _library("decompress")
    decompressor = library.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    most = min(limit, most_decompressed(len(body)))
    content = memoryview(np.empty(most, np.uint8))  # type: ignore[arg-type]
    filled = 0
    try:
        with decompressor.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            while filled < most and (size := reader.readinto(content[filled : filled + _BLOCK_BYTES])):
                claim(size)
                filled += size
            longer = filled == most and bool(reader.read(1))
    except library.ZstdError as error:
        raise WireError(
            "the body cannot be decompressed", field="body", expected="zstd", got=str(error)[:120]
        ) from None
    if longer:
        raise LimitError(
            "body is too large once decompressed",
            field="body",
            expected=f"at most {most} bytes" if most == limit else f"at most {most} bytes, {MAX_RATIO} times as sent",
            got="more",
            remedy=None if most == limit else "Send it uncompressed.",
        )
    return content[:filled]


def _library(job: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"cannot {job}: zstandard is not installed", field="Content-Encoding", remedy="pip install zstandard"
        ) from None
    return zstandard
