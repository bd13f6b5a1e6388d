"""One request through the blocking client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import Event
from qwen3vl_edge.edge_runtime.client.server_credentials import NO_CREDENTIALS, ServerAccess
from qwen3vl_edge.edge_runtime.client.sync_client import Client


def generate(url: str, body: WireBody, access: ServerAccess = NO_CREDENTIALS) -> dict[str, Any]:
    with Client(url, access) as client:
        return client.generate(body)


def stream(url: str, body: WireBody, access: ServerAccess = NO_CREDENTIALS) -> Iterator[Event]:
    with Client(url, access) as client:
        yield from client.stream(body)
