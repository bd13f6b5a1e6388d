"""`/v1/generate`: requests posted, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx

from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE
from qwen3vl_edge.contract.wire.request import GenerateRequest
from tests.support.wire_bodies import body_of

BINARY = {"Content-Type": CONTENT_TYPE}


def key_headers(key: str) -> dict[str, str]:
    """Of a binary body with an idempotency key."""
    return {**BINARY, HEADER: key}


def post(
    to: str | httpx.Client,
    request: GenerateRequest | bytes,
    headers: dict[str, str] | None = None,
    path: str = "/v1/generate",
) -> httpx.Response:
    """The answer to a binary body.

    Args:
        to: a server's URL, or a client with a base URL.
        headers: beside the content type.
    """
    body = request if isinstance(request, bytes) else body_of(request)
    headers = {**BINARY, **(headers or {})}
    if isinstance(to, httpx.Client):
        return to.post(path, content=body, headers=headers)
    return httpx.post(f"{to}{path}", content=body, headers=headers, timeout=60)


def events_of(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The events of a complete stream, without the `[DONE]` that ends it."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]
