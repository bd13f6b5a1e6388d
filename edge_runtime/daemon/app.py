"""The daemon's local API, put together; each group of routes has a file of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from contract.http_counter import RequestCounter
from contract.http_errors import install_error_handlers
from edge_runtime.daemon import chat_routes, job_routes, status_routes
from edge_runtime.daemon.job_runner import JobRunner
from edge_runtime.daemon.state import Daemon
from edge_runtime.daemon.systemd import feed_watchdog

ROUTES = (*chat_routes.ROUTES, *job_routes.ROUTES, *status_routes.ROUTES)


def create_app(daemon: Daemon) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watchdog = asyncio.create_task(feed_watchdog())
        async with daemon.upstream:
            if daemon.spool is not None:
                daemon.runner = JobRunner(daemon.spool, daemon.upstream, daemon.config)
                daemon.runner.start()
            yield
            if daemon.runner is not None:
                await daemon.runner.stop()
        watchdog.cancel()

    app = FastAPI(title="qwen3vl-edge daemon", docs_url=None, redoc_url=None, lifespan=lifespan)
    install_error_handlers(app)
    app.add_middleware(RequestCounter, requests=daemon.metrics.requests, routes=ROUTES)
    app.include_router(status_routes.status_routes(daemon))
    app.include_router(chat_routes.chat_routes(daemon))
    app.include_router(job_routes.job_routes(daemon))
    return app
