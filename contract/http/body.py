"""Read request bodies, compressed or not, up to a size limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from qwen3vl_edge.contract.errors import ContractError, LimitError
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.ledger import BODY_BYTES, DECOMPRESSED_BYTES, Account
from qwen3vl_edge.contract.wire.compression import ZSTD, decompress

Body = bytearray | bytes | memoryview
_MAX_DIGITS = 19  # of a Content-Length; Python's int() rejects numbers of thousands of digits


def content_type(request: Request, *known: str) -> str:
    """The body's media type, in lower case and without its parameters.

    Raises:
        HttpError: 415, the type is not one of `known`.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in known:
        raise HttpError(
            415,
            "unsupported_content_type",
            "unsupported Content-Type",
            field="Content-Type",
            expected=" or ".join(known),
            got=repr(kind)[:80],
        )
    return kind


async def read_body(
    request: Request, limit: int, timeout_s: float, *, zstd: bool = False, account: Account | None = None
) -> Body:
    """Read the whole body, into one buffer if Content-Length is given.

    The buffer costs address space only, because the system allocates pages when they are written. Sets
    `request.state.receive_s` to the seconds taken, for `received_header`, and `request.state.received_bytes` to the
    bytes as sent.

    Args:
        limit: most bytes, both as sent and decompressed.
        zstd: accept a compressed body (`Content-Encoding: zstd`).
        account: claims the bytes as they arrive, and those of a compressed body again as they are decompressed.

    Raises:
        HttpError: 411 without a length or chunks, 400 for a length that is not a number or is exceeded, or a client
            that disconnected, 408 after `timeout_s` seconds, 415 for an unsupported content encoding.
        LimitError: more than `limit` bytes, announced, sent or decompressed; or they do not fit beside the bodies of
            other requests.
        WireError: the body cannot be decompressed.
    """
    headers = request.headers
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding and not (zstd and encoding == ZSTD):
        expected = f"none or {ZSTD}" if zstd else "none"
        raise HttpError(
            415,
            "unsupported_encoding",
            "the body is encoded",
            field="Content-Encoding",
            expected=expected,
            got=repr(encoding)[:40],
        )
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise HttpError(411, "length_required", "the body's length is missing", field="Content-Length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise HttpError(400, "bad_length", "Content-Length is not a number", field="Content-Length", got=length[:40])
    if length is not None and (len(length) > _MAX_DIGITS or int(length) > limit):
        raise _too_large(limit, f"{length[:_MAX_DIGITS]} bytes")
    started = time.perf_counter()
    try:
        body = await asyncio.wait_for(
            _collect(request, limit, None if length is None else int(length), account), timeout_s
        )
    except asyncio.TimeoutError:
        raise HttpError(
            408, "body_timeout", "the body came too slowly", field="body", expected=f"all within {timeout_s:g} s"
        ) from None
    except ClientDisconnect:
        raise HttpError(400, "client_left", "the client disconnected before the body ended", field="body") from None
    request.state.receive_s = time.perf_counter() - started
    request.state.received_bytes = len(body)
    if not encoding:
        return body
    if account is None:
        return await run_in_threadpool(decompress, body, limit)
    return await run_in_threadpool(decompress, body, limit, partial(account.claim, DECOMPRESSED_BYTES))


def received_header(request: Request) -> dict[str, str]:
    """Milliseconds taken to receive the body, as a `Server-Timing` header (W3C Server Timing)."""
    seconds = getattr(request.state, "receive_s", None)
    return {} if seconds is None else {"Server-Timing": f"receive;dur={seconds * 1e3:.3f}"}


async def _collect(request: Request, limit: int, length: int | None, account: Account | None) -> bytearray | memoryview:
    chunks = _claimed_chunks(request, account)
    if length is None:
        return await _collect_chunks(chunks, limit)
    return await _collect_announced(chunks, length)


async def _claimed_chunks(request: Request, account: Account | None) -> AsyncIterator[bytes]:
    """The body's chunks, each claimed once it is here: a client that announces much and sends little holds little."""
    async for chunk in request.stream():
        if account is not None:
            await account.wait_for(BODY_BYTES, len(chunk))
        yield chunk


async def _collect_announced(chunks: AsyncIterator[bytes], length: int) -> memoryview:
    """Collect a body of a known length within the limit; each byte is copied once."""
    buffer = memoryview(np.empty(length, np.uint8))  # type: ignore[arg-type]
    filled = 0
    async for chunk in chunks:
        end = filled + len(chunk)
        if end > length:
            raise HttpError(
                400, "bad_length", "the body is longer than announced", field="Content-Length", expected=length, got=end
            )
        buffer[filled:end] = chunk
        filled = end
    return buffer[:filled]


async def _collect_chunks(chunks: AsyncIterator[bytes], limit: int) -> bytearray:
    """Collect a body of unknown length.

    Raises:
        LimitError: more than `limit` bytes.
    """
    body = bytearray()
    async for chunk in chunks:
        if len(body) + len(chunk) > limit:
            raise _too_large(limit, "more")
        body += chunk
    return body


def _too_large(limit: int, got: str) -> ContractError:
    return LimitError("body is too large", field="body", expected=f"at most {limit} bytes", got=got)
