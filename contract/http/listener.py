"""Listening socket, HTTP server and clean shutdown of server and daemon."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from qwen3vl_edge.contract.http.sparse_log import SparseWarnings
from qwen3vl_edge.contract.http.tls import ServerTls
from qwen3vl_edge.contract.machine.descriptors import allow_descriptors

if TYPE_CHECKING:
    import uvicorn

    from qwen3vl_edge.contract.http.connection import OnRefusal

logger = logging.getLogger(__name__)
_OWN_DESCRIPTORS = 128  # of the process, beside its connections


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
    app: Any,
    drain_s: int,
    tls: ServerTls | None = None,
    loop: Literal["auto", "asyncio"] = "auto",
    limits: ConnectionLimits | None = None,
    on_refusal: OnRefusal = lambda *_: None,
) -> uvicorn.Server:
    """A uvicorn server that logs warnings and errors only: the app logs its requests.

    Args:
        app: an ASGI application.
        drain_s: seconds in which in-flight requests may finish after a stop signal.
        tls: serve HTTPS with these files, and no HTTP.
        loop: "auto" is uvloop if it is installed, which reads large bodies in half the time and without stalls of
            40 ms (docs/reports/performance-log.md).
        limits: of its connections; the default ones if None.
        on_refusal: called with the error and the client's address for what is no HTTP request as it should be, which
            the app never sees.
    """
    import uvicorn

    from qwen3vl_edge.contract.http.accepting_server import AcceptingServer

    limits = _limits_of_this_process(limits or ConnectionLimits())
    requires_certificate = tls is not None and tls.client_ca is not None
    config = uvicorn.Config(
        app,
        http="h11",  # the class comes from AcceptingServer; this keeps uvicorn from importing another parser
        ws="none",
        loop=loop,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=bool(limits.trusted_proxies),
        forwarded_allow_ips=list(limits.trusted_proxies),
        timeout_graceful_shutdown=drain_s,
        ssl_certfile=None if tls is None else tls.cert,
        ssl_keyfile=None if tls is None else tls.key,
        ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
        ssl_cert_reqs=ssl.CERT_REQUIRED if requires_certificate else ssl.CERT_NONE,
    )
    SparseWarnings.of("uvicorn.error")
    return AcceptingServer(config, limits, on_refusal)


def _limits_of_this_process(limits: ConnectionLimits) -> ConnectionLimits:
    """The limits, with fewer connections if the process may not open so many files."""
    allowed = allow_descriptors(limits.in_all + _OWN_DESCRIPTORS)
    fits = max(1, allowed - _OWN_DESCRIPTORS)
    if fits < limits.in_all:
        logger.warning(
            "max_connections = %d needs %d open files, and this process may open %d: %d connections are allowed",
            limits.in_all,
            limits.in_all + _OWN_DESCRIPTORS,
            allowed,
            fits,
        )
    return replace(limits, in_all=min(limits.in_all, fits))


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
