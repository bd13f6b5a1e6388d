"""A uvicorn server that accepts its connections itself, so that their number and their TLS handshakes have limits.

asyncio pauses for a second where it has no descriptor for a new connection; uvloop closes the listening socket, without
a line in the log. Neither counts connections, and uvicorn sets no deadline for the handshake.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn

from qwen3vl_edge.contract.http.connection import HttpConnection, OnRefusal
from qwen3vl_edge.contract.http.connection_table import Connection, ConnectionLimits, ConnectionTable
from qwen3vl_edge.contract.http.sparse_log import SparseLog

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_SECONDS, _EXHAUSTED_SECONDS = 0.02, 0.5


class AcceptingServer(uvicorn.Server):
    """The server; run it with listening sockets.

    Attributes:
        table: the open connections.
    """

    def __init__(self, config: uvicorn.Config, limits: ConnectionLimits, on_refusal: OnRefusal) -> None:
        super().__init__(config)
        self.table = ConnectionTable(limits)
        self._limits = limits
        self._on_refusal = on_refusal
        self._at_once = max(1, min(limits.in_all, limits.per_address) // 8)  # of one's own that come before one is read
        self._log = SparseLog()
        self._accepting: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # without listeners of its own
        for listener in sockets or ():
            listener.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(listener)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        tasks = [*self._accepting, *self._opening]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # a loop must not watch a closed socket
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections, many at a time: a client behind a flood does not wait a round of the loop for each.

        No more than a part of a limit: else one that was just accepted would make room before its request is read.
        """
        loop = asyncio.get_running_loop()
        while listener.fileno() >= 0:
            try:
                self._open(*await loop.sock_accept(listener))
                for _ in range(self._at_once - 1):
                    self._open(*listener.accept())
            except BlockingIOError:
                pass
            except OSError as error:
                await self._wait_after(error)
                continue
            await asyncio.sleep(0)  # asyncio's sock_accept does not wait as long as there are connections

    async def _wait_after(self, error: OSError) -> None:
        if error.errno not in _EXHAUSTED:  # of the connection, which its client may have ended already
            await asyncio.sleep(_RETRY_SECONDS)
            return
        why = f"no connection can be accepted ({error.strerror})"
        self._log.note("exhausted", f"{why}; {len(self.table)} are open. Allow more open files, as with ulimit -n.")
        has_room = self.table.make_room(why)
        await asyncio.sleep(_RETRY_SECONDS if has_room else _EXHAUSTED_SECONDS)

    def _open(self, accepted: socket.socket, address: Any) -> None:
        """Count a connection; its protocol is made in the loop's next round, if it has not been closed by then."""
        accepted.setblocking(False)
        is_network = accepted.family in (socket.AF_INET, socket.AF_INET6)
        place = Connection(address[0] if is_network else "")
        if not self.table.make_room_for(place.address):
            accepted.close()
            return
        place.close = accepted.close
        self.table.add(place)
        asyncio.get_running_loop().call_soon(self._begin, accepted, place)

    def _begin(self, accepted: socket.socket, place: Connection) -> None:
        if accepted.fileno() < 0:
            return
        if place.address:
            _set_options(accepted, self._limits.write_timeout_s)
        task = asyncio.create_task(self._connect(accepted, place))
        place.close = task.cancel
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, accepted: socket.socket, place: Connection) -> None:
        """Hand the socket to its protocol; with TLS after the handshake, which may fail or take too long."""
        loop, config, limits = asyncio.get_running_loop(), self.config, self._limits
        state, lifespan = self.server_state, self.lifespan.state
        protocol = partial(
            HttpConnection, config, state, lifespan, self.table, place, limits.head_timeout_s, self._on_refusal
        )
        try:
            if config.ssl is None:
                await loop.connect_accepted_socket(protocol, accepted)
            else:
                await loop.connect_accepted_socket(
                    protocol, accepted, ssl=config.ssl, ssl_handshake_timeout=limits.head_timeout_s
                )
        except BaseException as error:
            self.table.remove(place)
            if not isinstance(error, OSError):
                raise


def _set_options(accepted: socket.socket, write_timeout_s: float) -> None:
    with suppress(OSError):  # its client has reset it
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: also ends a connection whose client keeps its window shut
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(write_timeout_s * 1000))
