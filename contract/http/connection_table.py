"""The open connections of a server: how many there may be, and which one is closed for the next.

Where a limit is reached, the connection that has waited longest for its client is closed: one without a request, with a
body that does not come, or whose client does not read its answer. A client that connects now waits shortest, so those
who only hold connections never lock it out, not even from its own address. A connection whose request is being answered
is never closed; if all are, the new one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qwen3vl_edge.contract.http.sender import Proxies, sender_of
from qwen3vl_edge.contract.http.sparse_log import SparseLog


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the connections of a server.

    Attributes:
        in_all: most connections.
        per_address: most of one address, which is a /64 prefix in IPv6; not of a trusted proxy or a Unix socket.
        head_timeout_s: seconds for a TLS handshake, and again for the head of a request.
        write_timeout_s: seconds for which a client may leave an answer unread.
        trusted_proxies: addresses and networks whose `X-Forwarded-For` is believed.
    """

    in_all: int = 1000
    per_address: int = 256
    head_timeout_s: float = 10.0
    write_timeout_s: float = 60.0
    trusted_proxies: tuple[str, ...] = ()


@dataclass(eq=False)
class Connection:
    """A connection of the table.

    Attributes:
        address: the client's; empty for a Unix socket.
        close: closes it at once.
        sender: what its limit applies to.
    """

    address: str
    close: Callable[[], object] = lambda: None
    sender: str = field(init=False)

    def __post_init__(self) -> None:
        self.sender = sender_of(self.address)


@dataclass
class _Group:
    """Connections that share a limit; those that wait for their client are in the order in which they began to."""

    count: int = 0
    waiting: dict[Connection, None] = field(default_factory=dict)


class ConnectionTable:
    """The open connections. Used from the event loop's thread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._proxies = Proxies(limits.trusted_proxies)
        self._members: set[Connection] = set()
        self._all = _Group()
        self._by_sender: dict[str, _Group] = {}
        self._log = SparseLog()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._members

    def make_room_for(self, address: str) -> bool:
        """Close a connection if the limits allow no further one of this address; False if there is none to close."""
        limits, sender = self._limits, sender_of(address)
        own = self._by_sender.get(sender, _Group())
        is_limited = bool(address) and address not in self._proxies
        if is_limited and own.count >= limits.per_address:
            reached = f"max_connections_per_address = {limits.per_address} is reached by {sender}"
            return self._has_room(own, reached)
        if self._all.count >= limits.in_all:
            return self._has_room(self._all, f"max_connections = {limits.in_all} is reached")
        return True

    def make_room(self, reason: str) -> bool:
        """Close the connection that has waited longest; False if none waits."""
        return self._close_longest(self._all, reason)

    def add(self, connection: Connection) -> None:
        """Count a new connection, which waits for its client."""
        self._members.add(connection)
        for group in self._groups(connection):
            group.count += 1
            group.waiting[connection] = None

    def wait(self, connection: Connection) -> None:
        """The connection begins to wait for its client, or waits anew: it has made progress."""
        self.answer(connection)
        if connection in self._members:
            for group in self._groups(connection):
                group.waiting[connection] = None

    def answer(self, connection: Connection) -> None:
        """The connection's client waits for the server: it is not closed to make room."""
        if connection in self._members:
            for group in self._groups(connection):
                group.waiting.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """The connection is closed; it may have been removed before."""
        self.answer(connection)
        if connection not in self._members:
            return
        for group in self._groups(connection):
            group.count -= 1
        if not self._by_sender[connection.sender].count:
            del self._by_sender[connection.sender]
        self._members.discard(connection)

    def _groups(self, connection: Connection) -> tuple[_Group, _Group]:
        return self._all, self._by_sender.setdefault(connection.sender, _Group())

    def _has_room(self, group: _Group, reason: str) -> bool:
        has_room = self._close_longest(group, reason)
        if not has_room:
            self._log.note("refused", f"{reason}: a connection was refused, because all are being answered")
        return has_room

    def _close_longest(self, group: _Group, reason: str) -> bool:
        longest = next(iter(group.waiting), None)
        if longest is None:
            return False
        self._log.note("closed", f"{reason}: the connection that waited longest for its client was closed")
        self.remove(longest)
        longest.close()
        return True
