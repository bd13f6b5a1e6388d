"""A TCP proxy whose connections fall silent and stay open, as those of a network that went away do."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class StallingProxy:
    """Attributes: stalls: connections that have fallen silent so far."""

    url: str
    stalls: int = 0


@contextmanager
def stalling_proxy(target: str, seed: int, longest: int, share: float = 0.7) -> Iterator[StallingProxy]:
    """Forward to `target`; this share of the connections falls silent after at most `longest` bytes of the answer."""
    host, port = target.removeprefix("http://").split(":")
    chance = random.Random(seed)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = StallingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def forward(source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while chunk := source.recv(4096 if left is None else min(left + 1, 64)):
                if left is not None and (left := left - len(chunk)) < 0:
                    proxy.stalls += 1
                    return
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                left = chance.randrange(longest) if chance.random() < share else None
                threading.Thread(target=forward, args=(near, far, None), daemon=True).start()
                threading.Thread(target=forward, args=(far, near, left), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        listener.close()
