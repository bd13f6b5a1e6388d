"""Starts, serves and stops the daemon. torch and the web framework are imported when `serve` runs."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.shown_url import shown_url
from qwen3vl_edge.contract.http.listener import http_server, listen, quiet_stop
from qwen3vl_edge.contract.http.tracing import start_tracing
from qwen3vl_edge.contract.wire.compression import require_zstd
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.systemd import notify

if TYPE_CHECKING:
    import uvicorn

    from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
    from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
    from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import Upstream

logger = logging.getLogger("edge")


def serve(config: DaemonConfig, reread: Callable[[], DaemonConfig]) -> None:
    """Serve a bundle until SIGTERM or Ctrl-C; returns after a clean stop.

    The port is open at once; `/readyz` answers 503 until the bundle is open and has passed its self-test.

    Args:
        reread: the settings as they are at the time of a reload (SIGHUP).

    Raises:
        InputError: an address that cannot be listened on, or options that cannot be used.
        BundleError: the bundle is missing or altered.
    """
    open_bundle(config.bundle, verify=False)  # a wrong folder is an error before torch is imported
    listeners = [listen(config.host, config.port)]
    try:
        if config.unix_socket is not None:
            listeners.append(_listen_on_path(config.unix_socket))
        _serve_on(listeners, config, reread)
    finally:
        for listener in listeners:
            listener.close()
        if config.unix_socket is not None and len(listeners) > 1:
            config.unix_socket.unlink(missing_ok=True)


def _listen_on_path(path: Path) -> socket.socket:
    """A Unix socket that only this user can open; a stale one of a killed daemon is replaced.

    Raises:
        InputError: another process listens there, the path is no socket, or it cannot be created.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise InputError(f"{path} exists and is not a socket", field="unix_socket")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise InputError(f"another process listens on {path}", field="unix_socket")
            path.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {path} ({error.strerror or error})", field="unix_socket") from None
    except InputError:
        listener.close()
        raise
    return listener


def _serve_on(listeners: list[socket.socket], config: DaemonConfig, reread: Callable[[], DaemonConfig]) -> None:
    from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
    from qwen3vl_edge.edge_runtime.daemon.app import create_app, record_refusal
    from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
    from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool
    from qwen3vl_edge.edge_runtime.daemon.logs import log_to_stderr
    from qwen3vl_edge.edge_runtime.daemon.reload import Reloader

    log_to_stderr(config.log_format)
    start_tracing("qwen3vl-edge")
    spool = Spool(config.spool, config.spool_mib * 2**20, config.spool_jobs) if config.spool is not None else None
    bandwidth = BandwidthEstimate()
    daemon = Daemon(config, _upstream(config, bandwidth), spool, bandwidth)
    reloader = Reloader(daemon, reread)
    app, limits = create_app(daemon, reloader), config.connection_limits
    on_refusal = partial(record_refusal, daemon)
    server = http_server(app, config.drain_s, loop="asyncio", limits=limits, on_refusal=on_refusal)
    url = f"http://{config.host}:{listeners[0].getsockname()[1]}"
    logger.info("opening %s; %s answers 503 until it is ready", config.bundle, url)
    threading.Thread(target=_start, args=(daemon, server, url), daemon=True).start()
    with quiet_stop():
        server.run(sockets=listeners)
    notify("STOPPING=1")
    if spool is not None:
        spool.close()
    if daemon.started is not None:
        daemon.started.close()
    if daemon.failure is not None:
        raise daemon.failure
    logger.info("stopped")


def _upstream(config: DaemonConfig, bandwidth: BandwidthEstimate | None = None) -> Upstream:
    from qwen3vl_edge.edge_runtime.daemon.upstreams.openai_server import OpenAIServer
    from qwen3vl_edge.edge_runtime.daemon.upstreams.qwen3vl_server import Qwen3VLServer

    access = config.server_access
    if access.sends_token_in_clear(config.server):
        logger.warning("server_api_key is sent to %s without encryption. Use https://.", shown_url(config.server))
    if config.server_kind == "openai":
        return OpenAIServer(config.server, config.server_model, access)
    if config.wire_zstd:
        require_zstd()  # missing, it is an error now and not at the first request
    return Qwen3VLServer(config.server, config.send_by_hash, access, config.wire_zstd, bandwidth)


def _start(daemon: Daemon, server: uvicorn.Server, url: str) -> None:
    """Open the bundle in the background, test that it encodes, and report readiness."""
    config = daemon.config
    try:
        from qwen3vl_edge.contract.machine.startup_objects import exclude_from_collections
        from qwen3vl_edge.edge_runtime.daemon.open_pipeline import open_pipeline

        pipeline = open_pipeline(config, daemon.bandwidth)
    except BaseException as error:
        daemon.failure = error
        server.should_exit = True
        return
    exclude_from_collections()
    pipeline.cameras.start()
    daemon.started = pipeline
    edge = pipeline.edge
    logger.info(
        "ready: %s, %s %s, %d buckets%s, %s preprocessing",
        edge.bundle.manifest.model.id,
        edge.encoder.name,
        edge.encoder.precision,
        len(edge.encoder.serves.buckets),
        " and any other size" if edge.encoder.serves.dynamic else "",
        "reference" if edge.lean is None else "lean",
    )
    logger.info("listening on %s%s", url, f" and {config.unix_socket}" if config.unix_socket else "")
    notify("READY=1")
