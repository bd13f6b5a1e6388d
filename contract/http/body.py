"""Reading a request body no further than the limit, compressed or not."""

from __future__ import annotations

import asyncio
import time

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from qwen3vl_edge.contract.errors import ContractError, LimitError
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.wire.compression import ZSTD, decompress

DIRECT_BODY = "qwen3vl_edge.direct_body"
"""Where the scope has what brings a long body sooner (contract/http/direct_body.py), under this project's servers."""
Body = bytearray | bytes | memoryview
_MAX_DIGITS = 19  # of a length; Python reads no number of thousands


def content_type(request: Request, *known: str) -> str:
    """The body's media type, in lower case and without its parameters.

    Raises:
        HttpError: 415, it is none of `known`.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in known:
        raise HttpError(
            415,
            "unsupported_content_type",
            "content type is not spoken here",
            field="Content-Type",
            expected=" or ".join(known),
            got=repr(kind)[:80],
        )
    return kind


async def read_body(request: Request, limit: int, timeout_s: float, *, zstd: bool = False) -> Body:
    """The whole body, as it comes; no memory is set aside for what Content-Length only claims.

    How many seconds it took to come is left in `request.state.receive_s`, for `received_header`, and how many bytes
    came in `request.state.received_bytes`.

    Args:
        limit: bytes, as sent and, where it is compressed, decompressed.
        zstd: a body may be compressed (`Content-Encoding: zstd`).

    Raises:
        HttpError: 411 without a length or chunks, 400 for a length that is no number or a client that left,
            408 when it takes longer than `timeout_s`, 415 for a content encoding.
        LimitError: more than `limit` bytes, claimed, sent or decompressed.
        WireError: it does not decompress.
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
        raise HttpError(400, "bad_length", "the body's length is no number", field="Content-Length", got=length[:40])
    if length is not None and (len(length) > _MAX_DIGITS or int(length) > limit):
        raise _too_large(limit, f"{length[:_MAX_DIGITS]} bytes")
    started = time.perf_counter()
    try:
        body = await asyncio.wait_for(_collect(request, limit, length is not None), timeout_s)
    except asyncio.TimeoutError:
        raise HttpError(
            408, "body_timeout", "the body came too slowly", field="body", expected=f"all within {timeout_s:g} s"
        ) from None
    except ClientDisconnect:
        raise HttpError(400, "client_left", "the client left before its body was complete", field="body") from None
    request.state.receive_s = time.perf_counter() - started
    request.state.received_bytes = len(body)
    return await run_in_threadpool(decompress, body, limit) if encoding else body


def received_header(request: Request) -> dict[str, str]:
    """How long the body took to come, as `Server-Timing` tells it (W3C Server Timing), in milliseconds."""
    seconds = getattr(request.state, "receive_s", None)
    return {} if seconds is None else {"Server-Timing": f"receive;dur={seconds * 1e3:.3f}"}


async def _collect(request: Request, limit: int, has_length: bool) -> bytearray | memoryview:
    """The body; where it comes directly, its stream has its end alone to tell.

    Args:
        has_length: there is a Content-Length, and it is within the limit.
    """
    direct = request.scope.get(DIRECT_BODY) if has_length else None
    whole: memoryview | None = None if direct is None else await direct.receive()
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise _too_large(limit, "more")
        body += chunk
    return body if whole is None else whole


def _too_large(limit: int, got: str) -> ContractError:
    return LimitError("body is too large", field="body", expected=f"at most {limit} bytes", got=got)
