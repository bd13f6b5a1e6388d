"""The HTTP edge: routes, content types and status codes. Tensors are checked here and never computed with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.http.body import Body, content_type, read_body
from qwen3vl_edge.contract.http.errors import HttpError, install_error_handlers
from qwen3vl_edge.contract.http.idempotency_key import HEADER, idempotency_key
from qwen3vl_edge.contract.http.request_counter import RequestCounter
from qwen3vl_edge.contract.http.tracing import TraceMiddleware
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, decode_request
from qwen3vl_edge.contract.wire.embedding_hash import check_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference
from qwen3vl_edge.server.embeddings.disk import open_disk
from qwen3vl_edge.server.embeddings.routes import embedding_routes
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.generate_json import decode_json
from qwen3vl_edge.server.generation.answer_json import answer, describe, trace
from qwen3vl_edge.server.generation.keyed import KeyedGenerations, fingerprint
from qwen3vl_edge.server.generation.lifecycle import admit, begin_or_join, tell
from qwen3vl_edge.server.generation.live_generation import LiveGeneration, start
from qwen3vl_edge.server.generation.streaming import KEEP_ALIVE_SECONDS, events
from qwen3vl_edge.server.http.access import Guard
from qwen3vl_edge.server.http.identity import client_of, request_id_of
from qwen3vl_edge.server.metrics import Metrics
from qwen3vl_edge.server.openai.routes import PATH as CHAT
from qwen3vl_edge.server.openai.routes import openai_routes
from qwen3vl_edge.server.openapi import FORGET, GENERATE, JSON, describe_openapi
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine

MAX_REQUEST_ID = 128
ROUTES = ("/v1/generate", CHAT, "/v1/models", "/readyz", "/healthz")


def create_app(readiness: Readiness, options: ServerOptions, bases: Bases = NO_BASES) -> FastAPI:
    """The application.

    Args:
        readiness: gets its engine when the model is loaded; until then most routes answer 503.
        options: limits and the model's name.
        bases: what embeddings may be in.

    Raises:
        InputError: a file or folder of the options cannot be used.
    """
    app = FastAPI(title="qwen3vl-edge server", docs_url=None, redoc_url=None)
    disk = open_disk(options, lambda: readiness.engine.loaded.shape.model_hash)
    store = app.state.store = EmbeddingStore(options.hold_embeddings_mib * 2**20, options.hold_embeddings_s, disk=disk)
    metrics = Metrics(readiness.stats, store)
    keyed = KeyedGenerations(options, metrics.idempotent)
    started = int(time.time())
    install_error_handlers(app)
    app.add_middleware(TraceMiddleware)
    app.state.guard = Guard(options)
    app.state.guard.install(app)
    app.add_middleware(RequestCounter, requests=metrics.requests, routes=ROUTES)
    describe_openapi(app)
    app.include_router(embedding_routes(readiness, options, store, bases))
    app.include_router(openai_routes(readiness, options, store, keyed, metrics, bases))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """200 once the model is loaded and has generated; 503 before, and while the engine is stuck in a step."""
        loaded = readiness.working_engine(options.stall_s).loaded
        holds = {"holds_embeddings": store.max_bytes > 0, "wire_bases": list(bases)}
        return {"status": "ready", "model": loaded.name, **describe(loaded), **holds}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        loaded = readiness.engine.loaded
        card = {"id": loaded.name, "object": "model", "created": started, "owned_by": "qwen3vl-edge"}
        return {"object": "list", "data": [{**card, **describe(loaded)}]}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/generate", openapi_extra=GENERATE)
    async def generate(request: Request) -> Response:
        """Answer a prompt whose pictures are embeddings: JSON, or server-sent events with `stream`."""
        engine = readiness.engine
        client, key = admit(request, engine, keyed)
        prepared = await _read_request(request, engine, options, metrics, store, bases)
        begin = partial(start, engine, prepared, partial(metrics.record, client.name), client.turn)
        running, leave = await begin_or_join(keyed, client, key, partial(fingerprint, prepared), begin)
        stream = events(engine, prepared, running) if prepared.stream else None
        return await tell(request, running, leave, stream, partial(_whole, prepared, running, engine))

    @app.delete("/v1/generate", status_code=204, openapi_extra=FORGET)
    async def forget(request: Request) -> Response:
        """The sender of this Idempotency-Key needs its answer no more; 204, whether or not it is known."""
        key = idempotency_key(request.headers)
        if key is None:
            raise HttpError(400, "bad_idempotency_key", "no key to forget", field=HEADER)
        keyed.forget(key, client_of(request).name)
        return Response(status_code=204)

    return app


async def _read_request(
    request: Request, engine: Engine, options: ServerOptions, metrics: Metrics, store: EmbeddingStore, bases: Bases
) -> GenerateRequest:
    """Body to checked request, whichever of the two content types it has.

    Raises:
        ContractError: whatever is wrong with it.
    """
    kind = content_type(request, CONTENT_TYPE, JSON)
    limits = engine.limits
    limit = options.most_json_bytes(limits) if kind == JSON else limits.max_body_bytes
    body = await read_body(request, limit, options.body_timeout_s, zstd=True)
    namespace, request_id = client_of(request).name, request_id_of(request)
    metrics.received.inc(request.state.received_bytes)

    def decode() -> GenerateRequest:
        if kind == JSON:
            return _with_request_id(decode_json(bytes(body), engine.loaded.shape, limits, engine.prepare), request_id)
        return _with_request_id(_binary_request(body, engine, store, namespace, bases), request_id)

    return await run_in_threadpool(decode)


def _binary_request(body: Body, engine: Engine, store: EmbeddingStore, namespace: str, bases: Bases) -> GenerateRequest:
    """A checked request; what it names by hash comes from the store, and what it brought with a hash goes there."""
    held: list[MediaEmbeddings] = []

    def lookup(references: Sequence[MediaReference]) -> list[MediaEmbeddings]:
        held.extend(store.lookup(references, namespace))
        return held

    prepared = engine.prepare(decode_request(body, engine.limits, lookup, bases))
    for index, item in enumerate(prepared.media):
        if not any(item is known for known in held):  # what is held was checked when it came
            check_hash(f"media.{index}.hash", item, engine.loaded.shape.model_hash)
    store.keep_all(prepared, namespace)
    return prepared


def _with_request_id(request: GenerateRequest, otherwise: str) -> GenerateRequest:
    if len(request.request_id) > MAX_REQUEST_ID:
        raise WireError(
            "request_id is too long",
            field="request_id",
            expected=f"at most {MAX_REQUEST_ID} characters",
            got=len(request.request_id),
        )
    return request if request.request_id else replace(request, request_id=otherwise)


async def _whole(prepared: GenerateRequest, running: LiveGeneration, engine: Engine) -> dict[str, Any]:
    """The answer, once it is there."""
    async for _ in running.log.follow(KEEP_ALIVE_SECONDS):
        pass
    result = running.result
    trace(result)
    return answer(prepared, result, engine.loaded)
