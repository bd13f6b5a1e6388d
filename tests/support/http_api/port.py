"""Ports of this machine, below HTTP."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(url: str, timeout: float = 10) -> socket.socket:
    """A connection to the server at `url`."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=timeout)
