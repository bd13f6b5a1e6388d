"""`POST /v1/chat/completions`: OpenAI's chat completions, whose pictures are embeddings."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.http.body import content_type
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.ledger import JSON_VALUES
from qwen3vl_edge.contract.http.openai_chat import name_chat_field, sampling_of
from qwen3vl_edge.contract.wire.embedding_hash import check_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference
from qwen3vl_edge.server import openapi
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.generation.keyed import fingerprint
from qwen3vl_edge.server.generation.lifecycle import admit, respond, start_or_join
from qwen3vl_edge.server.generation.live_generation import start_generation
from qwen3vl_edge.server.http.identity import Client
from qwen3vl_edge.server.http.json_body import read_json
from qwen3vl_edge.server.openai.answers import PreparedChat, chat_completion, chat_completion_chunks, provenance_of
from qwen3vl_edge.server.openai.parts import Medium, PartReader, with_part_fields
from qwen3vl_edge.server.openai.prompt import PromptWriter
from qwen3vl_edge.server.openai.request import DEFAULT_MAX_TOKENS, ChatRequest, parse_chat
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.server.state import ServerState

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine

PATH = "/v1/chat/completions"


def openai_routes(state: ServerState) -> APIRouter:
    """`/v1/chat/completions`."""
    router = APIRouter()

    @router.post(PATH, openapi_extra=openapi.CHAT)
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions, streamed and not; pictures are embeddings, or named by hash."""
        admitted = admit(request, state)
        engine, client, options = admitted.engine, admitted.client, state.options
        content_type(request, openapi.JSON)
        with admitted.account as account:
            most = options.most_json_bytes(engine.limits)
            body = await read_json(request, state, account, most, options.max_values, "max_chat_values")
            parts = PartReader(
                engine.loaded.shape,
                engine.limits,
                state.readiness.pixels,
                state.bases,
                account,
                options.exif_orientation,
            )
            chats = ChatReader(engine, state.store, parts, options)
            prepared = await state.parse(partial(chats.prepare, body, client, admitted.key))
            account.give_back(JSON_VALUES)
            record = partial(state.metrics.record, client.name)
            start = partial(start_generation, engine, prepared.request, record, client.turn, prepared.chat.stop_strings)
            generation, detach = await start_or_join(state.keyed, admitted, partial(_digest, prepared), start)
        stream = chat_completion_chunks(prepared, generation, engine) if prepared.chat.stream else None
        complete = partial(chat_completion, prepared, generation, engine)
        return await respond(request, generation, detach, stream, complete)

    return router


@dataclass(frozen=True)
class ChatReader:
    """Reads chat requests and prepares them for the engine. Blocks; runs in a thread."""

    engine: Engine
    store: EmbeddingStore
    parts: PartReader
    options: ServerOptions

    def prepare(self, body: bytes, client: Client, key: str | None) -> PreparedChat:
        """Body to checked request.

        Raises:
            ContractError: the request is invalid; names the field of the chat.
        """
        chat = parse_chat(body, self.options.max_values, self.options.max_text_kib * 1024)
        self._check_model(chat)
        media = self.parts.read(chat.messages, chat.processor_arguments)
        ids = self._writer.write(chat, media)
        try:
            embeddings = self._embeddings(media, client)
            request = self.engine.prepare(
                GenerateRequest(
                    model_hash=None,  # checked for each part
                    input_ids=ids,
                    media=tuple(embeddings),
                    sampling=sampling_of(chat, min(DEFAULT_MAX_TOKENS, self.engine.limits.max_new_tokens)),
                    stream=chat.stream,
                    request_id=_request_id(client, key),
                    logprobs=chat.wanted_logprobs,
                )
            )
            self._keep(media, request, client)
        except ContractError as error:
            named = with_part_fields(error, media)
            name_chat_field(named)
            raise named from None
        without_media = chat.model_copy(update={"messages": []})  # it is kept as long as the answer
        return PreparedChat(without_media, request, provenance_of(media))

    @property
    def _writer(self) -> PromptWriter:
        return PromptWriter(self.engine.loaded.tokenizer, self.engine.loaded.shape, self.engine.limits)

    def _check_model(self, chat: ChatRequest) -> None:
        if chat.model not in ("", "default", self.engine.loaded.name):
            raise HttpError(
                404,
                "model_not_found",
                "unknown model",
                field="model",
                expected=self.engine.loaded.name,
                got=repr(chat.model)[:80],
            )

    def _embeddings(self, media: list[Medium], client: Client) -> list[MediaEmbeddings]:
        """The media's embeddings; those named by hash come from the store."""
        references = [item.media for item in media if isinstance(item.media, MediaReference)]
        held = iter(self.store.lookup(references, client.name, self.engine.loaded.shape))
        return [next(held) if isinstance(item.media, MediaReference) else item.media for item in media]

    def _keep(self, media: list[Medium], request: GenerateRequest, client: Client) -> None:
        """Add tensors that came with a hash to the store, once the hash is verified."""
        for index, (item, embeddings) in enumerate(zip(media, request.media, strict=True)):
            if item.source == "tensors" and embeddings.hash is not None:
                check_hash(f"media.{index}.hash", embeddings, self.engine.loaded.shape.model_hash)
                self.store.keep(embeddings, client.name)


def _request_id(client: Client, key: str | None) -> str:
    """Random, or derived from the key: the ids of the answer and of its tool calls are made from it."""
    return uuid.uuid4().hex if key is None else hashlib.sha256(f"{client.name}\n{key}".encode()).hexdigest()[:32]


def _digest(prepared: PreparedChat) -> bytes:
    """sha256 of what determines the answer and its text, including the route."""
    chat = prepared.chat
    rest = [PATH, chat.stop_strings, chat.wanted_logprobs, sorted(chat.tool_names)]
    return hashlib.sha256(fingerprint(prepared.request) + json.dumps(rest).encode()).digest()
