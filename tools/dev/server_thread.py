"""A server that runs in a thread of this process, so that its app and engine can be looked into."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from qwen3vl_edge.contract.http.listener import http_server, listen
from qwen3vl_edge.contract.http.tls import ServerTls


@contextlib.contextmanager
def serving(
    app: Any,
    tls: ServerTls | None = None,
    loop: Literal["auto", "asyncio"] = "auto",
    limits: ConnectionLimits | None = None,
) -> Iterator[int]:
    """The server's port on the loopback address."""
    with listen("127.0.0.1", 0) as listener:
        server = http_server(app, 2, tls, loop, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)
