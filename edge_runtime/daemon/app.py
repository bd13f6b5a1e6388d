"""The daemon's local API: OpenAI's chat completions in front of this device's encoder."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from enum import Enum
from typing import Any, Final, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send

from contract.errors import ContractError, ServerUnavailableError
from contract.http_body import read_body
from contract.http_counter import RequestCounter
from contract.http_errors import HttpError, install_error_handlers
from contract.wire import CONTENT_TYPE, encode_request
from edge_runtime.async_client import AsyncClient
from edge_runtime.daemon.chat import Progress, chunks, completion, generate
from edge_runtime.daemon.config import DaemonConfig
from edge_runtime.daemon.encode_pipeline import EncodePipeline
from edge_runtime.daemon.metrics import Metrics
from edge_runtime.daemon.openai_request import ChatRequest, parse_chat, sampling_of
from edge_runtime.daemon.systemd import feed_watchdog
from edge_runtime.edge import EncodedPrompt

BODY_SECONDS = 60.0
CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody reads it but the metrics
T = TypeVar("T")


class Left(Enum):
    """What stands for an answer where the client has gone."""

    LEFT = "left"


LEFT: Final = Left.LEFT
ROUTES = ("/v1/chat/completions", "/v1/encode", "/v1/models", "/readyz", "/healthz")
logger = logging.getLogger("edge")


class Daemon:
    """What the routes share; the pipeline is missing until the bundle is open and has passed its self-test."""

    def __init__(self, config: DaemonConfig) -> None:
        self.config = config
        self.client = AsyncClient(config.server)
        self.started: EncodePipeline | None = None
        self.failure: BaseException | None = None
        self.metrics = Metrics(lambda: self.started)

    @property
    def pipeline(self) -> EncodePipeline:
        """Raises: ServerUnavailableError: still starting."""
        if self.started is None:
            raise ServerUnavailableError("the daemon is still starting", remedy="Try again when /readyz answers 200.")
        return self.started


class ClosingStream(StreamingResponse):
    """Events of which `end` is told once they are over: sent, failed, or left by the client, even before the first."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], Awaitable[None]]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._end()


def create_app(daemon: Daemon) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watchdog = asyncio.create_task(feed_watchdog())
        async with daemon.client:
            yield
        watchdog.cancel()

    app = FastAPI(title="qwen3vl-edge daemon", docs_url=None, redoc_url=None, lifespan=lifespan)
    install_error_handlers(app)
    app.add_middleware(RequestCounter, requests=daemon.metrics.requests, routes=ROUTES)
    started = int(time.time())

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 as long as the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """200 once this device can encode; whether the server can be reached stands in the body."""
        pipeline = daemon.pipeline
        server = await daemon.client.ready()
        return {"status": "ready", **_describe(pipeline), "server": "ready" if server else "not reachable or not ready"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that answers."""
        name = daemon.pipeline.edge.bundle.manifest.model.id
        card = {"id": name, "object": "model", "created": started, "owned_by": "qwen3vl-edge"}
        return {"object": "list", "data": [{**card, **_describe(daemon.pipeline)}]}

    @app.get("/metrics")
    async def scrape() -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(daemon.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/encode")
    async def encode(request: Request) -> Response:
        """A chat request's body to what would go to the server: token ids and embeddings (safetensors)."""
        with daemon.pipeline.place():
            _, encoded = await _encoded(request, daemon)
            return Response(b"".join(encode_request(encoded.request)), media_type=CONTENT_TYPE)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions, streamed and not; pictures are encoded here."""
        with ExitStack() as place:
            place.enter_context(daemon.pipeline.place())
            chat, encoded = await _encoded(request, daemon)
            progress = Progress()
            pieces = generate(daemon.client, encoded, chat, daemon.config.deadline_s, progress)
            if not chat.stream:
                return await _whole(request, daemon, encoded, pieces, progress)
            first: str | Literal[Left.LEFT] | None = LEFT
            try:  # an error before the answer begins is a status, not an event
                first = await _unless_left(request, anext(pieces, None))
            finally:
                if first is LEFT:
                    await pieces.aclose()
                    _account(daemon.metrics, progress, encoded)
            if first is LEFT:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            held = place.pop_all()  # the place is taken until the last event was sent

            async def end() -> None:
                await pieces.aclose()
                held.close()
                _account(daemon.metrics, progress, encoded)

            return ClosingStream(_events(daemon, encoded, chat, first, pieces, progress), end)

    return app


def _describe(pipeline: EncodePipeline) -> dict[str, Any]:
    edge = pipeline.edge
    return {
        "model_hash": edge.bundle.manifest.model.model_hash,
        "backend": edge.engine.name,
        "precision": edge.engine.precision,
        "buckets": [str(grid) for grid in edge.engine.serves.buckets],
        "any_size": edge.engine.serves.dynamic,
    }


async def _encoded(request: Request, daemon: Daemon) -> tuple[ChatRequest, EncodedPrompt]:
    """The checked body, and its conversation encoded.

    Raises:
        ContractError: whatever is wrong with it; 404 for a model that is not served.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "unsupported_content_type", "the body is not JSON", field="Content-Type", got=kind[:80])
    chat = parse_chat(await read_body(request, daemon.config.max_body_mib * 2**20, BODY_SECONDS))
    served = daemon.pipeline.edge.bundle.manifest.model.id
    if chat.model not in ("", "default", served):
        raise HttpError(
            404, "model_not_found", "no such model here", field="model", expected=served, got=repr(chat.model)[:80]
        )
    encoded = await daemon.pipeline.encode(chat.messages, sampling_of(chat, daemon.config.default_max_tokens))
    daemon.metrics.encoded(encoded)
    return chat, encoded


async def _whole(
    request: Request, daemon: Daemon, encoded: EncodedPrompt, pieces: AsyncGenerator[str, None], progress: Progress
) -> Response:
    """The whole answer; a client that leaves ends its generation."""

    async def collect() -> None:
        async with aclosing(pieces):
            async for _ in pieces:
                pass

    try:
        if await _unless_left(request, collect()) is LEFT:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        _account(daemon.metrics, progress, encoded)
    return JSONResponse(completion(daemon.pipeline.edge.bundle.manifest.model.id, encoded, progress))


async def _unless_left(request: Request, work: Awaitable[T]) -> T | Literal[Left.LEFT]:
    """The result of `work`, or LEFT, and the work cancelled, once the client has closed the connection."""
    answer, left = asyncio.ensure_future(work), asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else LEFT
    finally:
        answer.cancel()
        left.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    daemon: Daemon,
    encoded: EncodedPrompt,
    chat: ChatRequest,
    first: str | None,
    pieces: AsyncIterator[str],
    progress: Progress,
) -> AsyncIterator[str]:
    async def all_pieces() -> AsyncIterator[str]:
        if first is not None:
            yield first
            async for piece in pieces:
                yield piece

    try:
        async for event in chunks(daemon.pipeline.edge.bundle.manifest.model.id, encoded, chat, all_pieces(), progress):
            yield event
    except ContractError as error:
        yield f"data: {json.dumps(error.to_openai())}\n\n"
        yield "data: [DONE]\n\n"


def _account(metrics: Metrics, progress: Progress, encoded: EncodedPrompt) -> None:
    metrics.sent.inc(progress.sent_bytes)
    if progress.first_token_s is not None:
        metrics.seconds.labels("first_token").observe(progress.first_token_s)
        metrics.seconds.labels("generate").observe(progress.generate_s)
    # No prompt, no picture, no answer: only what it cost.
    logger.info(
        "request %s: %d media, %d prompt tokens, %d tokens, %d bytes sent, "
        "preprocess %.3f s, encode %.3f s, generate %.3f s",
        encoded.request.request_id,
        len(encoded.request.media),
        len(encoded.request.input_ids),
        progress.tokens,
        progress.sent_bytes,
        encoded.timings.preprocess,
        sum(encoded.timings.encode),
        progress.generate_s,
    )
