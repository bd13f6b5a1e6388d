"""The sender of a request: the name of its token, or without tokens its address."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from qwen3vl_edge.contract.http.sender import sender_of


@dataclass(frozen=True)
class Client:
    """A sender.

    Attributes:
        name: its token's name; empty if the server requires no tokens. It is the namespace of stored embeddings,
            idempotency keys and the prefix cache.
        turn: the queue line that it uses, and whose share its requests count to: the name, or the address as
            `sender_of` has it.
    """

    name: str
    turn: str


def request_id_of(request: Request) -> str:
    """The id that `server/http/audit.py` assigned to the request, for its log lines and its response."""
    request_id: str = request.state.request_id
    return request_id


def client_of(request: Request) -> Client:
    """The sender of a request; `server/http/access.py` stores its name in the state if tokens are required."""
    name: str = getattr(request.state, "client_name", "")
    return Client(name, name or (sender_of(request.client.host) if request.client is not None else ""))
