"""OpenAI's chat completions in front of this device's encoder, and `/v1/encode`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, nullcontext
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.formats.strict_json import check_values
from qwen3vl_edge.contract.http.body import content_type, read_body
from qwen3vl_edge.contract.http.disconnect import (
    CLIENT_CLOSED_REQUEST,
    DISCONNECTED,
    ClosingStream,
    Disconnected,
    cancel_on_disconnect,
)
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.idempotency_key import idempotency_key
from qwen3vl_edge.contract.http.ledger import BODY_BYTES, JSON_VALUES, Account
from qwen3vl_edge.contract.http.openai_chat import sampling_of
from qwen3vl_edge.contract.http.tracing import span, spans_until_now
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.edge_runtime.daemon.chat import Progress, chunks, completion, generate
from qwen3vl_edge.edge_runtime.daemon.daemon import Daemon
from qwen3vl_edge.edge_runtime.daemon.logs import log_request
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatRequest, media_sources, parse_chat
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt

ROUTES = ("/v1/chat/completions", "/v1/encode")
BODY_SECONDS = 60.0


def chat_routes(daemon: Daemon) -> APIRouter:
    """`/v1/chat/completions` and `/v1/encode`."""
    router = APIRouter()

    @router.post("/v1/encode")
    async def encode(request: Request) -> Response:
        """The body that a chat request would send to the server: token ids and embeddings (safetensors)."""
        with daemon.history.entry("encode") as entry, daemon.account(request) as account:
            chat = await read_chat(request, daemon, account)
            with daemon.slot():
                encoded = entry.encoded = await encode_chat(request, chat, daemon, account)
                body = await run_in_threadpool(lambda: bytes(encode_request(encoded.request)))
                return Response(body, media_type=CONTENT_TYPE)

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions, streamed and not; pictures are encoded here.

        A client's Idempotency-Key becomes the server's, so the request sent again gets the same answer.
        """
        key = idempotency_key(request.headers)
        with ExitStack() as slot:
            entry = slot.enter_context(daemon.history.entry("chat"))
            account = slot.enter_context(daemon.account(request))
            chat = await read_chat(request, daemon, account)
            slot.enter_context(daemon.slot())
            daemon.upstream.check(chat)
            encoded = entry.encoded = with_request_id(await encode_chat(request, chat, daemon, account), key)
            chat = chat.without_media()
            account.give_back(BODY_BYTES)
            progress = entry.progress = Progress()
            pieces = generate(daemon.upstream, encoded, chat, daemon.config.deadline_s, progress, keep=key is not None)
            if not chat.stream:
                return await _whole(request, daemon, chat, encoded, pieces, progress)
            return await _streamed(request, daemon, chat, encoded, pieces, progress, slot)

    return router


async def read_chat(request: Request, daemon: Daemon, account: Account) -> ChatRequest:
    """The checked body. The request needs a slot afterwards: one whose body comes slowly must not hold it meanwhile.

    Raises:
        QueueFullError, ServerUnavailableError: no slot is free; still starting.
        ContractError: the body cannot be used; 415 for another Content-Type, 404 for a model that is not served.
    """
    content_type(request, "application/json")
    daemon.check_room()
    limits = daemon.config.chat_limits
    received = await read_body(request, daemon.config.max_body_mib * 2**20, BODY_SECONDS, account=account)
    body = await run_in_threadpool(bytes, received)
    del received
    values = await run_in_threadpool(check_values, body, limits.max_json_values, "body", "max_json_values")
    await account.wait_for(JSON_VALUES, values)
    chat = await run_in_threadpool(parse_chat, body, limits)
    account.give_back(JSON_VALUES)
    if chat.model not in ("", "default", daemon.model):
        raise HttpError(
            404,
            "model_not_found",
            "no such model",
            field="model",
            expected=daemon.model,
            got=repr(chat.model)[:80],
        )
    return chat


async def encode_chat(request: Request, chat: ChatRequest, daemon: Daemon, account: Account) -> EncodedPrompt:
    """Encode a conversation, and add its cost to the metrics; it ends when the client leaves.

    Raises:
        ContractError: media that cannot be used; 499 for a client that left.
    """
    sampling = sampling_of(chat, daemon.config.default_max_tokens)
    fetches = any(source.scheme in ("http", "https") for source in media_sources(chat.messages))
    encoding = daemon.pipeline.encode(chat.messages, sampling, account, chat.processor_arguments)
    with span("encode"), daemon.fetching.slot() if fetches else nullcontext():
        encoded = await cancel_on_disconnect(request, encoding)
    if encoded is DISCONNECTED:
        raise HttpError(CLIENT_CLOSED_REQUEST, "client_left", "the client left before its media were encoded")
    daemon.metrics.encoded(encoded)
    return encoded


def with_request_id(encoded: EncodedPrompt, request_id: str | None) -> EncodedPrompt:
    """The prompt with `request_id`, unchanged for None."""
    return encoded if request_id is None else replace(encoded, request=replace(encoded.request, request_id=request_id))


async def _whole(
    request: Request,
    daemon: Daemon,
    chat: ChatRequest,
    encoded: EncodedPrompt,
    pieces: AsyncGenerator[str, None],
    progress: Progress,
) -> Response:
    """The whole answer as one object; generation ends when the client disconnects."""

    async def collect() -> None:
        async with aclosing(pieces):
            async for _ in pieces:
                pass

    try:
        if await cancel_on_disconnect(request, collect()) is DISCONNECTED:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        _record(daemon, chat, progress, encoded)
    return JSONResponse(completion(encoded, progress))


async def _streamed(
    request: Request,
    daemon: Daemon,
    chat: ChatRequest,
    encoded: EncodedPrompt,
    pieces: AsyncGenerator[str, None],
    progress: Progress,
    slot: ExitStack,
) -> Response:
    """The answer as server-sent events.

    The first piece is awaited, so that an error before it becomes a status and not an event.
    """
    first: str | Literal[Disconnected.DISCONNECTED] | None = DISCONNECTED
    try:
        first = await cancel_on_disconnect(request, anext(pieces, None))
    finally:
        if first is DISCONNECTED:
            await pieces.aclose()
            _record(daemon, chat, progress, encoded)
    if first is DISCONNECTED:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    held = slot.pop_all()  # in flight until the last event was sent

    async def end() -> None:
        await pieces.aclose()
        held.close()
        _record(daemon, chat, progress, encoded)

    return ClosingStream(_events(daemon, encoded, chat, first, pieces, progress), end)


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
        async for event in chunks(encoded, chat, all_pieces(), progress):
            yield event
    except ContractError as error:
        progress.failure = error
        yield f"data: {json.dumps(error.to_openai())}\n\n"
        yield "data: [DONE]\n\n"


def _record(daemon: Daemon, chat: ChatRequest, progress: Progress, encoded: EncodedPrompt) -> None:
    metrics = daemon.metrics
    metrics.sent.inc(progress.sent_bytes)
    metrics.by_hash.inc(len(progress.by_hash))
    metrics.saved.inc(sum(encoded.request.media[index].nbytes for index in progress.by_hash))
    if progress.first_token_s is not None:
        metrics.seconds.labels("first_token").observe(progress.first_token_s)
        metrics.seconds.labels("generate").observe(progress.generate_s)
    first = progress.first_token_s or 0.0
    phases = {"first_token": first, "rest": progress.generate_s - first}
    spans_until_now(phases, sent_bytes=progress.sent_bytes, completion_tokens=progress.tokens)
    log_request(encoded, progress, chat, daemon.config.log_prompts)
