"""`POST /v1/chat/completions`: a chat in OpenAI's form, answered by the language model alone."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.http.body import Body, content_type, read_body
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.openai_chat import sampling_of
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.contract.wire.embedding_hash import check_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference
from qwen3vl_edge.server import openapi
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.generation.keyed import KeyedGenerations, fingerprint
from qwen3vl_edge.server.generation.lifecycle import admit, begin_or_join, tell
from qwen3vl_edge.server.generation.live_generation import start
from qwen3vl_edge.server.http.identity import Client
from qwen3vl_edge.server.metrics import Metrics
from qwen3vl_edge.server.openai.answers import Prepared, chunks, evidence_of, whole
from qwen3vl_edge.server.openai.parts import Medium, PartReader, in_words_of
from qwen3vl_edge.server.openai.prompt import PromptWriter
from qwen3vl_edge.server.openai.request import DEFAULT_MAX_TOKENS, ChatRequest, parse_chat
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.readiness import Readiness

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine

PATH = "/v1/chat/completions"


def openai_routes(
    readiness: Readiness,
    options: ServerOptions,
    store: EmbeddingStore,
    keyed: KeyedGenerations,
    metrics: Metrics,
    bases: Bases = NO_BASES,
) -> APIRouter:
    """`/v1/chat/completions`."""
    router = APIRouter()

    @router.post(PATH, openapi_extra=openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions, streamed and not; pictures are embeddings, or named by hash."""
        engine = readiness.engine
        client, key = admit(request, engine, keyed)
        body = await _body(request, engine, options)
        metrics.received.inc(request.state.received_bytes)
        chats = Chats(engine, store, PartReader(engine.loaded.shape, engine.limits, readiness.pixels, bases))
        prepared = await run_in_threadpool(chats.prepare, body, client, key)
        record = partial(metrics.record, client.name)
        begin = partial(start, engine, prepared.request, record, client.turn, prepared.chat.stop_strings)
        running, leave = await begin_or_join(keyed, client, key, partial(_digest, prepared), begin)
        stream = chunks(prepared, running, engine) if prepared.chat.stream else None
        return await tell(request, running, leave, stream, partial(whole, prepared, running, engine))

    return router


async def _body(request: Request, engine: Engine, options: ServerOptions) -> Body:
    content_type(request, openapi.JSON)
    return await read_body(request, options.most_json_bytes(engine.limits), options.body_timeout_s, zstd=True)


@dataclass(frozen=True)
class Chats:
    """Turns chat requests into requests of the engine. Blocks; runs in a thread."""

    engine: Engine
    store: EmbeddingStore
    parts: PartReader

    def prepare(self, body: Body, client: Client, key: str | None) -> Prepared:
        """Body to checked request.

        Raises:
            ContractError: whatever is wrong with it, in the words of the chat.
        """
        chat = parse_chat(bytes(body))
        self._check_model(chat)
        media = self.parts.read(chat.messages)
        ids = self._writer.write(chat, media)
        try:
            found = self._embeddings(media, client)
            request = self.engine.prepare(
                GenerateRequest(
                    model_hash=None,  # what parts say of it was checked with them
                    input_ids=ids,
                    media=tuple(found),
                    sampling=sampling_of(chat, min(DEFAULT_MAX_TOKENS, self.engine.limits.max_new_tokens)),
                    stream=chat.stream,
                    request_id=_request_id(client, key),
                    logprobs=chat.wanted_logprobs,
                )
            )
            self._keep(media, request, client)
        except ContractError as error:
            raise _in_words_of_chat(in_words_of(error, media)) from None
        return Prepared(chat, request, evidence_of(media))

    @property
    def _writer(self) -> PromptWriter:
        return PromptWriter(self.engine.loaded.tokenizer, self.engine.loaded.shape, self.engine.limits)

    def _check_model(self, chat: ChatRequest) -> None:
        if chat.model not in ("", "default", self.engine.loaded.name):
            raise HttpError(
                404,
                "model_not_found",
                "no such model here",
                field="model",
                expected=self.engine.loaded.name,
                got=repr(chat.model)[:80],
            )

    def _embeddings(self, media: list[Medium], client: Client) -> list[MediaEmbeddings]:
        """With what is named by hash looked up."""
        references = [item.media for item in media if isinstance(item.media, MediaReference)]
        held = iter(self.store.lookup(references, client.name))
        return [next(held) if isinstance(item.media, MediaReference) else item.media for item in media]

    def _keep(self, media: list[Medium], request: GenerateRequest, client: Client) -> None:
        """Hold what came with a hash, once that is known to be its."""
        for index, (item, found) in enumerate(zip(media, request.media, strict=True)):
            if item.source == "tensors" and found.hash is not None:
                check_hash(f"media.{index}.hash", found, self.engine.loaded.shape.model_hash)
                self.store.keep(found, client.name)


def _request_id(client: Client, key: str | None) -> str:
    """A new one, or for a key always the same, as the answer's id and those of its tool calls are made from it."""
    return uuid.uuid4().hex if key is None else hashlib.sha256(f"{client.name}\n{key}".encode()).hexdigest()[:32]


def _digest(prepared: Prepared) -> bytes:
    """sha256 of what decides the answer and how its text is read; the route is a part of it."""
    chat = prepared.chat
    rest = [PATH, chat.stop_strings, chat.wanted_logprobs, sorted(chat.tool_names)]
    return hashlib.sha256(fingerprint(prepared.request) + json.dumps(rest).encode()).digest()


def _in_words_of_chat(error: ContractError) -> ContractError:
    """The same error, its sampling parameter or prompt named as the chat names it."""
    names = {"sampling.max_new_tokens": "max_tokens", "input_ids": "messages"}
    if error.field in names:
        error.field = names[error.field]
    elif error.field is not None:
        error.field = error.field.removeprefix("sampling.")
    return error
