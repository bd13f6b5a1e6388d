"""Connections that only wait, and bodies that nobody wants."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from qwen3vl_edge.contract.machine.descriptors import allow_descriptors
from qwen3vl_edge.tools.dev.attack.attack import CLOSED, Attack, Outcome
from qwen3vl_edge.tools.dev.attack.target import MIB, Target

EACH = 25  # connections for each request of another attack
OPENED_PER_SECOND = 200  # a flood of them is another attack, which a firewall ends
OPEN_STILL = 599  # a connection that was not closed in time, or a body that was read on and on
PATIENCE_SECONDS = 30.0
SWALLOWED_BYTES = 16 * MIB  # buffers of both systems, and what is read so that the refusal arrives
WAITING = {"head_timeout_s": 1.0, "max_connections": 200, "max_connections_per_address": 100}


def _connected(target: Target) -> socket.socket:
    connection = socket.create_connection(target.address, timeout=10)
    connection.setblocking(False)
    return connection


@contextmanager
def _connections(target: Target, count: int) -> Iterator[list[socket.socket]]:
    allow_descriptors(count + 100)
    with ExitStack() as stack:
        yield [stack.enter_context(_connected(target)) for _ in _in_time(count)]


def _in_time(count: int) -> Iterator[int]:
    begun = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, begun + number / OPENED_PER_SECOND - time.monotonic()))
        yield number


def waiting(first: bytes, drip: bytes = b"") -> Callable[[Target, int, int], Outcome]:
    """Connections that send the beginning of a head, and then so much of it ten times a second."""

    def send(target: Target, times: int, _: int) -> Outcome:
        outcome = Outcome(request_bytes=len(first))
        with _connections(target, EACH * times) as connections:
            for connection in connections:
                with suppress(OSError):
                    connection.send(first)
            open_still, ends = connections, time.monotonic() + PATIENCE_SECONDS
            while open_still and time.monotonic() < ends:
                time.sleep(0.1)
                open_still = [connection for connection in open_still if not _is_closed(connection, drip)]
            outcome.statuses.update([OPEN_STILL] * len(open_still))
            outcome.statuses.update([CLOSED] * (len(connections) - len(open_still)))
        return outcome

    return send


def _is_closed(connection: socket.socket, drip: bytes) -> bool:
    try:
        if drip:
            connection.send(drip)
        return connection.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def endless_body(target: Target, times: int, _: int) -> Outcome:
    """A terabyte, as fast as it goes, to a path that refuses it by its head."""
    head = (
        b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % 2**40
    )
    outcome = Outcome(request_bytes=len(head))
    for _index in range(times):
        with socket.create_connection(target.address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head)
            sent, nothing = 0, bytes(64 * 1024)
            with suppress(OSError):
                while sent <= SWALLOWED_BYTES:
                    sent += connection.send(nothing)
            outcome.statuses[OPEN_STILL if sent > SWALLOWED_BYTES else _status(connection)] += 1
    return outcome


def raw(content: bytes) -> Callable[[Target, int, int], Outcome]:
    """Bytes that are no HTTP request as they should be."""

    def send(target: Target, times: int, _: int) -> Outcome:
        outcome = Outcome(request_bytes=len(content))
        for _index in range(times):
            with socket.create_connection(target.address, timeout=PATIENCE_SECONDS) as connection:
                with suppress(OSError):
                    connection.sendall(content)
                outcome.statuses[_status(connection)] += 1
        return outcome

    return send


def _status(connection: socket.socket) -> int:
    try:
        words = connection.recv(4096).split(b" ", 2)
    except OSError:
        return CLOSED
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else CLOSED


HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ATTACKS = (
    Attack("endless-body", "server", endless_body),
    Attack("two-lengths", "server", raw(HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
    Attack(
        "tiny-chunks",
        "server",
        raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000),
        is_counted=False,
    ),
    Attack("long-head", "server", raw(HEAD + b"X: y\r\n" * 100_000)),
    Attack("silent-connections", "server", waiting(b""), WAITING, is_counted=False),
    Attack("half-heads", "server", waiting(HEAD), WAITING, is_counted=False),
    Attack("dripped-heads", "server", waiting(HEAD + b"X: ", b"y"), WAITING, is_counted=False),
    Attack("daemon-connections", "daemon", waiting(HEAD + b"X: ", b"y"), WAITING, is_counted=False),
)
