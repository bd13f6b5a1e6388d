"""Who sends a request: the name of its token, or without tokens the address it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True)
class Client:
    """A sender.

    Attributes:
        name: of its token; empty where the server asks for none. Embeddings, keys of answers and all else that is
            held belong to a name.
        turn: whose turn in the queue it uses: the name, or the address.
    """

    name: str
    turn: str


def request_id_of(request: Request) -> str:
    """The id that `server/http/audit.py` gave the request, for its log lines and its answer."""
    request_id: str = request.state.request_id
    return request_id


def client_of(request: Request) -> Client:
    """The sender of a request; `server/http/access.py` has put its name there where tokens are asked for."""
    name: str = getattr(request.state, "client_name", "")
    return Client(name, name or (request.client.host if request.client is not None else ""))
