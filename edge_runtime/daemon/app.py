"""The daemon's local API, put together; each group of routes has a file of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from contract.http_counter import RequestCounter
from contract.http_errors import install_error_handlers
from edge_runtime.daemon import camera_routes, chat_routes, status_routes
from edge_runtime.daemon.state import Daemon
from edge_runtime.daemon.systemd import feed_watchdog

ROUTES = (*chat_routes.ROUTES, *status_routes.ROUTES, *camera_routes.ROUTES)


def create_app(daemon: Daemon) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watchdog = asyncio.create_task(feed_watchdog())
        async with daemon.upstream:
            yield
        watchdog.cancel()

    app = FastAPI(title="qwen3vl-edge daemon", docs_url=None, redoc_url=None, lifespan=lifespan)
    install_error_handlers(app)
    app.add_middleware(RequestCounter, requests=daemon.metrics.requests, routes=ROUTES)
    app.include_router(status_routes.status_routes(daemon))
    app.include_router(chat_routes.chat_routes(daemon))
    app.include_router(camera_routes.camera_routes(daemon))
    return app
