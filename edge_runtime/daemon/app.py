"""Assembles the daemon's local API from its groups of routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from qwen3vl_edge.contract.http.errors import HttpError, install_error_handlers
from qwen3vl_edge.contract.http.request_counter import OTHER, RequestCounter
from qwen3vl_edge.contract.http.tracing import TraceMiddleware
from qwen3vl_edge.contract.machine.free_memory import keep_returning_free_memory
from qwen3vl_edge.edge_runtime.daemon.browser_guard import BrowserGuard
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.jobs import routes as job_routes
from qwen3vl_edge.edge_runtime.daemon.jobs.runner import JobRunner
from qwen3vl_edge.edge_runtime.daemon.reload import Reloader
from qwen3vl_edge.edge_runtime.daemon.routes import cameras as camera_routes
from qwen3vl_edge.edge_runtime.daemon.routes import chat as chat_routes
from qwen3vl_edge.edge_runtime.daemon.routes import page as page_routes
from qwen3vl_edge.edge_runtime.daemon.routes import status as status_routes
from qwen3vl_edge.edge_runtime.daemon.systemd import feed_watchdog

ROUTES = (
    *chat_routes.ROUTES,
    *job_routes.ROUTES,
    *status_routes.ROUTES,
    *page_routes.ROUTES,
    *camera_routes.ROUTES,
)


def create_app(daemon: Daemon, reloader: Reloader) -> FastAPI:
    """The application; `reloader` runs as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        background = [
            asyncio.create_task(feed_watchdog(lambda: daemon.beyond_help)),
            asyncio.create_task(reloader.run()),
            asyncio.create_task(keep_returning_free_memory(lambda: daemon.ledger.opened)),
        ]
        async with daemon.upstream:
            if daemon.spool is not None:
                daemon.runner = JobRunner(daemon.spool, daemon.upstream, daemon.config, lambda: daemon.bases)
                daemon.runner.start()
            yield
            if daemon.runner is not None:
                await daemon.runner.stop()
        for task in background:
            task.cancel()

    app = FastAPI(title="qwen3vl-edge daemon", docs_url=None, redoc_url=None, lifespan=lifespan)
    install_error_handlers(app)
    config = daemon.config
    # The middleware added last runs first.
    if config.allowed_origins:
        origins = list(config.allowed_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(
        BrowserGuard,
        host=config.host,
        allowed_hosts=config.allowed_hosts,
        allowed_origins=config.allowed_origins,
    )
    app.add_middleware(TraceMiddleware)
    app.add_middleware(RequestCounter, requests=daemon.metrics.requests, routes=ROUTES)
    app.include_router(status_routes.status_routes(daemon))
    app.include_router(chat_routes.chat_routes(daemon))
    app.include_router(job_routes.job_routes(daemon))
    app.include_router(camera_routes.camera_routes(daemon))
    if config.page:
        app.include_router(page_routes.page_routes())
    return app


def record_refusal(daemon: Daemon, error: HttpError, _address: str) -> None:
    """Count what the application did not see: it was no HTTP request as it should be."""
    daemon.metrics.requests.labels(OTHER, str(error.status)).inc()
