"""A real TCP proxy that cuts a connection after some bytes of the answer."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from types import TracebackType


class CuttingProxy:
    """Passes bytes to and from a port of this machine; of the first connections each is cut somewhere in its answer.

    Attributes:
        cuts: connections cut so far; those that sent nothing back are not counted.
    """

    def __init__(self, target_port: int, cut_first: int, within_bytes: int, seed: int) -> None:
        self._target, self._left, self._within = target_port, cut_first, within_bytes
        self._rng = random.Random(seed)
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
        limit = None
        if self._left > 0:
            self._left -= 1
            limit = self._rng.randrange(1, self._within)
        self._pass(far, near, limit)

    def _pass(self, source: socket.socket, sink: socket.socket, limit: int | None = None) -> None:
        with suppress(OSError):
            passed = 0
            while chunk := source.recv(4096 if limit is None else min(4096, limit - passed)):
                sink.sendall(chunk)
                passed += len(chunk)
                if limit is not None and passed >= limit:
                    self.cuts += 1
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
