"""A foreign server: OpenAI's chat completions with vLLM's `image_embeds` parts. Tested with vLLM 0.32.

Such a server renders the prompt itself, from the messages and its own chat template, and has no hash of its model.
So its answers are not proven to be the unsplit model's: their evidence has `model_proven` false, and whether the
server's count of prompt tokens equals this device's.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Any

import numpy as np

from qwen3vl_edge.contract.errors import InputError, ServerUnavailableError
from qwen3vl_edge.contract.formats.shown_url import shown_url
from qwen3vl_edge.contract.formats.torch_file import torch_bytes
from qwen3vl_edge.contract.wire.request import MediaEmbeddings, Sampling
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import Event, refused
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.edge_runtime.client.server_credentials import NO_CREDENTIALS, ServerAccess
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatMessage, ChatRequest
from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import OnSent
from qwen3vl_edge.edge_runtime.edge import EncodedPrompt

logger = logging.getLogger("edge")


class ModelNotServedError(InputError):
    """The server does not serve the model that is set, or several and none is set."""

    code = "model_not_served"


class OpenAIServer:
    """A vLLM started with `--enable-mm-embeds`, or a server with the same API."""

    def __init__(self, url: str, model: str = "", access: ServerAccess = NO_CREDENTIALS) -> None:
        self._client = AsyncClient(url.rstrip("/").removesuffix("/v1"), access)
        self._model = model

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The evidence about this server in every answer."""
        return {"kind": "openai", "model": self._model or None, "model_proven": False}

    @property
    def let_in(self) -> bool:
        return self._client.let_in

    async def __aenter__(self) -> OpenAIServer:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, value, trace)

    async def ready(self) -> dict[str, Any] | None:
        """Its list of models, None while it cannot be reached or does not serve the requested one."""
        try:
            await self._find_model(2.0)
        except (ServerUnavailableError, InputError):
            return None
        return self.evidence

    def check(self, chat: ChatRequest) -> None:
        for index, message in enumerate(chat.messages):
            if isinstance(message.content, list) and any(part.type == "video_url" for part in message.content):
                raise InputError(
                    "clips cannot be sent to this kind of server: its prompt would differ from Qwen's",
                    field=f"messages.{index}.content",
                    expected="text and images",
                    got="video_url",
                    remedy="Send clips to this project's own server (--server-kind qwen3vl).",
                )

    def forget(self, request_id: str) -> None:
        pass  # closing the connection ends the generation there

    async def stream(
        self, encoded: EncodedPrompt, chat: ChatRequest, deadline_s: float, on_sent: OnSent
    ) -> AsyncGenerator[Event, None]:
        self.check(chat)
        model = self._model or await self._find_model(min(deadline_s, 10.0))
        body = WireBody((memoryview(json.dumps(openai_body(model, encoded, chat)).encode()),), "application/json")
        on_sent(body.size)
        answer = _Answer({**(self.evidence or {}), "model": model}, len(encoded.request.input_ids))
        async with aclosing(self._client.event_data("/v1/chat/completions", body, deadline_s)) as events:
            async for data in events:  # the server stops generating when they are closed
                if text := answer.add(data):
                    yield Event(text)
        yield Event("", answer.final())

    async def _find_model(self, timeout: float) -> str:
        """The model name to request.

        Raises:
            ServerUnavailableError: its list of models cannot be fetched.
            ModelNotServedError: it does not serve the requested model, or serves several and none is requested.
        """
        listing = await self._client.get("/v1/models", timeout)
        if listing is None:
            raise ServerUnavailableError(
                f"server {shown_url(self._client.server)} does not list its models", field="server"
            )
        cards = listing.get("data")
        names = [str(card.get("id")) for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
        model = self._model or (names[0] if len(names) == 1 else "")
        if model not in names:
            raise ModelNotServedError(
                "the server does not serve the requested model, or serves several and none is requested",
                field="server_model",
                expected=" or ".join(names)[:200],
                got=repr(self._model),
                remedy="Set server_model to one of them.",
            )
        self._model = model
        return model


class _Answer:
    """Chunks of a chat completion, concatenated."""

    def __init__(self, evidence: dict[str, Any], prompt_tokens: int) -> None:
        self._evidence, self._prompt_tokens = evidence, prompt_tokens
        self._usage: dict[str, Any] = {}
        self._reason: str | None = None

    def add(self, data: str) -> str:
        """The text that an event adds.

        Raises:
            RefusedError, ServerUnavailableError: it is an error.
        """
        chunk = json.loads(data)
        if "error" in chunk:
            raise refused(chunk, 200)
        self._usage = chunk.get("usage") or self._usage
        text = ""
        for choice in chunk.get("choices") or []:
            self._reason = choice.get("finish_reason") or self._reason
            text += (choice.get("delta") or {}).get("content") or ""
        return text

    def final(self) -> dict[str, Any]:
        """The last event. A prompt of another length than this device's is logged and noted in the evidence."""
        counted = self._usage.get("prompt_tokens")
        same = counted == self._prompt_tokens
        if not same:
            logger.warning("the server read %s prompt tokens, this device %d", counted, self._prompt_tokens)
        server = {**self._evidence, "prompt_tokens": counted, "prompt_agrees": same}
        return {"finish_reason": self._reason or "stop", "usage": self._usage, "server": server}


def openai_body(model: str, encoded: EncodedPrompt, chat: ChatRequest) -> dict[str, Any]:
    """The chat request as sent: each picture replaced by its image part, everything else unchanged."""
    media = iter(encoded.request.media)
    return {
        "model": model,
        "messages": [_message(message, media) for message in chat.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(encoded.request.sampling),
        **({"stop": list(chat.stop_strings)} if chat.stop_strings else {}),
    }


def image_embeds(item: MediaEmbeddings) -> dict[str, Any]:
    """One image as vLLM's content part, one part per image: vLLM itself batches those of a request.

    Embeddings and DeepStack levels are concatenated on the feature axis, [n, D·(1 + levels)]; the grid is int64 [3].
    vLLM 0.32 stacks the grids of a request and takes the result's first axis for the images: from [1, 3] it makes
    [images, 1, 3] and refuses even one image. It also refuses all images in one part (vllm issue 32309).
    """
    embeds = np.concatenate(item.arrays, axis=1)
    grid = np.array(item.grid.as_list(), dtype=np.int64)
    packed = {"image_embeds": _base64(torch_bytes(embeds)), "image_grid_thw": _base64(torch_bytes(grid))}
    return {"type": "image_embeds", "image_embeds": packed}


def _message(message: ChatMessage, media: Iterator[MediaEmbeddings]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    parts = [
        {"type": "text", "text": part.text} if part.type == "text" else image_embeds(next(media))
        for part in message.content
    ]
    return {"role": role, "content": parts}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Names of vLLM; all of them, so that the defaults of the model's generation config change nothing."""
    values: dict[str, Any] = {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature if sampling.do_sample else 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_p": sampling.top_p if sampling.do_sample else 1.0,
        "top_k": sampling.top_k if sampling.do_sample else 0,
        "min_p": (sampling.min_p or 0.0) if sampling.do_sample else 0.0,
    }
    if sampling.logit_bias:
        values["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return values if sampling.seed is None else {**values, "seed": sampling.seed}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
