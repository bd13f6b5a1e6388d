"""The same requests as bytes over a real port, where the HTTP parser has its say; some are no HTTP at all."""

from __future__ import annotations

import contextlib
import random
import socket
from urllib.parse import quote

from qwen3vl_edge.tools.dev.fuzz.mutate import Mutant

TIMEOUT_SECONDS = 20.0
NO_HTTP_SECONDS = 0.5  # for a head that has no end, or that ends in a length of its own


def exchange(port: int, mutant: Mutant, seed: int, index: int) -> tuple[int, bytes]:
    """Status and body of the answer; 0 where there is none, which is right only where this was no HTTP.

    Raises:
        TimeoutError: no answer, though it was HTTP.
    """
    message, is_http = _message(mutant, random.Random(f"{seed}:{index}:port"))
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        with contextlib.suppress(ConnectionError):  # it may answer, and close, before all was sent
            connection.sendall(message)
        connection.settimeout(TIMEOUT_SECONDS if is_http else NO_HTTP_SECONDS)
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
        except TimeoutError:
            if is_http:
                raise
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), body


def _message(mutant: Mutant, rng: random.Random) -> tuple[bytes, bool]:
    """The request, and whether its head was left as it is."""
    names = {name.lower() for name, _ in mutant.headers}
    headers = [("Host", "server"), *mutant.headers, ("Connection", "close")]
    if not names & {"content-length", "transfer-encoding"}:
        headers.append(("Content-Length", str(len(mutant.body))))
    start = f"{mutant.method} {quote(mutant.path, errors='replace') or '/'} HTTP/1.1\r\n"
    head = start.encode() + b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers) + b"\r\n"
    is_http = rng.random() < 0.7
    if not is_http:
        changed = bytearray(head)
        for _ in range(rng.choice((1, 2, 6))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        head = bytes(changed)
    return head + mutant.body, is_http
