"""A TCP proxy that cuts connections after so many bytes of an answer, as a bad network does."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class CuttingProxy:
    """Attributes: cuts: so far. stall: bytes are held back, and the connection stays open, where it would be cut."""

    url: str
    cuts: int = 0
    stall: bool = False


@contextmanager
def cutting_proxy(target: str, seed: int, longest: int, share: float = 0.7) -> Iterator[CuttingProxy]:
    """Forward to `target`; this share of the connections is cut after at most `longest` bytes of the answer."""
    host, port = target.removeprefix("http://").split(":")
    chance = random.Random(seed)
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = CuttingProxy(f"http://127.0.0.1:{listener.getsockname()[1]}")

    def forward(source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with suppress(OSError):
            while chunk := source.recv(4096 if left is None else min(left + 1, 64)):
                if left is not None and (left := left - len(chunk)) < 0:
                    proxy.cuts += 1
                    if proxy.stall:
                        return
                    # Linger 0: a reset, not an orderly end.
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
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
