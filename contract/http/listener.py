"""Listening socket, HTTP server and clean shutdown of server and daemon."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.tls import ServerTls

if TYPE_CHECKING:
    import uvicorn


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket before anything loads, so that a port in use fails early and port 0 is resolved.

    Raises:
        InputError: the address does not exist or is in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port} ({error.strerror or error})", field="--port") from None


def http_server(
    app: Any, drain_s: int, tls: ServerTls | None = None, loop: Literal["auto", "asyncio"] = "auto"
) -> uvicorn.Server:
    """A uvicorn server that logs warnings and errors only: the app logs its requests.

    Args:
        app: an ASGI application.
        drain_s: seconds in which in-flight requests may finish after a stop signal.
        tls: serve HTTPS with these files, and no HTTP.
        loop: "auto" is uvloop if it is installed, which reads large bodies in half the time and without stalls of
            40 ms (docs/reports/performance-log.md).
    """
    import uvicorn

    requires_certificate = tls is not None and tls.client_ca is not None
    config = uvicorn.Config(
        app,
        http="h11",  # even if another parser is installed: the fuzzer tests this one
        loop=loop,
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        ssl_certfile=None if tls is None else tls.cert,
        ssl_keyfile=None if tls is None else tls.key,
        ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
        ssl_cert_reqs=ssl.CERT_REQUIRED if requires_certificate else ssl.CERT_NONE,
    )
    return uvicorn.Server(config)


def renew_tls(server: uvicorn.Server, tls: ServerTls) -> None:
    """Reload the TLS files for new connections; open connections keep the previous ones.

    OpenSSL only adds authorities, so one that is removed from `client_ca` is trusted until a restart.
    """
    context: ssl.SSLContext | None = getattr(server.config, "ssl", None)
    if context is None:
        return  # it does not listen yet, and will read the files when it starts
    context.load_cert_chain(tls.cert, tls.key)
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)


@contextmanager
def quiet_stop() -> Iterator[None]:
    """Suppress the signal that uvicorn raises again after a stop: a requested stop is not a failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
