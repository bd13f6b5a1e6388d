"""Bodies compressed losslessly with zstd (RFC 8878), with `Content-Encoding: zstd`.

The library is optional on both sides: a server without it rejects such a body, and a device without it sends none.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from qwen3vl_edge.contract.errors import InputError, LimitError, WireError
from qwen3vl_edge.contract.wire.wire_body import WireBody

ZSTD = "zstd"
LEVEL = 1  # higher levels cost a device more time than they save on any link where compression pays
MAX_WINDOW_BYTES = 8 * 2**20  # the largest window that RFC 9659 allows


def compress(body: WireBody) -> WireBody:
    """Compress a body into one buffer.

    Raises:
        InputError: the library is not installed.
    """
    compressor = _library("compress").ZstdCompressor(level=LEVEL).compressobj()
    parts = [compressor.compress(buffer) for buffer in body.buffers]
    return replace(body, buffers=(memoryview(b"".join([*parts, compressor.flush()])),), encoding=ZSTD)


def require_zstd() -> None:
    """Raises: InputError: the library is not installed."""
    _library("compress")


def decompress(body: bytes | bytearray | memoryview, limit: int) -> bytes:
    """Decompress a body; at most `limit` bytes of it and the window are in memory at any time.

    Raises:
        LimitError: the decompressed body is longer than `limit`.
        WireError: the body is not zstd, or needs a larger window than MAX_WINDOW_BYTES.
        InputError: the library is not installed.
    """
    library = _library("decompress")
    decompressor = library.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            content: bytes = reader.read(limit + 1)
    except library.ZstdError as error:
        raise WireError(
            "the body cannot be decompressed", field="body", expected="zstd", got=str(error)[:120]
        ) from None
    if len(content) > limit:
        raise LimitError(
            "body is too large once decompressed", field="body", expected=f"at most {limit} bytes", got="more"
        )
    return content


def _library(job: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise InputError(
            f"cannot {job}: zstandard is not installed", field="Content-Encoding", remedy="pip install zstandard"
        ) from None
    return zstandard
