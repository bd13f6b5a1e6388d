"""The HTTP application: middleware, health and model routes, and the other routers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from qwen3vl_edge.contract.http.errors import HttpError, install_error_handlers
from qwen3vl_edge.contract.http.request_counter import OTHER, RequestCounter
from qwen3vl_edge.contract.http.tracing import TraceMiddleware
from qwen3vl_edge.contract.machine.free_memory import keep_returning_free_memory
from qwen3vl_edge.server.embeddings.routes import embedding_routes
from qwen3vl_edge.server.generation.answer_json import model_facts
from qwen3vl_edge.server.generation.routes import PATH as GENERATE
from qwen3vl_edge.server.generation.routes import generation_routes
from qwen3vl_edge.server.http.audit import write_refusal
from qwen3vl_edge.server.openai.routes import PATH as CHAT
from qwen3vl_edge.server.openai.routes import openai_routes
from qwen3vl_edge.server.openapi import describe_openapi
from qwen3vl_edge.server.state import ServerState

ROUTES = (GENERATE, CHAT, "/v1/models", "/readyz", "/healthz")


def create_app(state: ServerState) -> FastAPI:
    """The application of one server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        trimming = asyncio.create_task(keep_returning_free_memory(lambda: state.ledger.opened))
        yield
        trimming.cancel()

    app = FastAPI(title="qwen3vl-edge server", docs_url=None, redoc_url=None, lifespan=lifespan)
    install_error_handlers(app)
    app.add_middleware(TraceMiddleware)
    state.guard.install(app)
    app.add_middleware(RequestCounter, requests=state.metrics.requests, routes=ROUTES)
    describe_openapi(app)
    app.include_router(embedding_routes(state))
    app.include_router(openai_routes(state))
    app.include_router(status_routes(state))
    app.include_router(generation_routes(state))
    return app


def record_refusal(state: ServerState, error: HttpError, address: str) -> None:
    """Count and log what the application did not see: it was no HTTP request as it should be."""
    state.metrics.requests.labels(OTHER, str(error.status)).inc()
    if state.guard.audit is not None:
        write_refusal(state.guard.audit, error, address)


def status_routes(state: ServerState) -> APIRouter:
    """Health, readiness, the model and the metrics."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 as long as the process runs."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """200 once the model is loaded and has generated; 503 before, and while the engine is stuck in a step."""
        loaded = state.readiness.working_engine(state.options.stall_s).loaded
        accepts = {"holds_embeddings": state.store.max_bytes > 0, "wire_bases": list(state.bases)}
        chosen = {"engine_reason": reason} if (reason := state.readiness.engine_reason) else {}
        return {"status": "ready", "model": loaded.name, **model_facts(loaded), **chosen, **accepts}

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        loaded = state.readiness.engine.loaded
        card = {"id": loaded.name, "object": "model", "created": started, "owned_by": "qwen3vl-edge"}
        return {"object": "list", "data": [{**card, **model_facts(loaded)}]}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
