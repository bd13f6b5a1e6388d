"""The body of `POST /v1/chat/completions`, and its checks."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.formats.strict_json import check_values
from qwen3vl_edge.contract.http.openai_chat import ChatOptions, Url, parse_chat_as, utf8_bytes
from qwen3vl_edge.contract.http.stop_matcher import check_stop_strings
from qwen3vl_edge.contract.pixels.part_options import CLIP_OPTIONS, IMAGE_OPTIONS, check_options

DEFAULT_MAX_TOKENS = 512  # same as the daemon's
MAX_ARGUMENT_VALUES = 10_000  # of a tool call's arguments, whose brackets may be escaped in the body


class Embeds(BaseModel):
    """One picture's or clip's embeddings: in vLLM's form, in this project's, or by hash.

    Attributes:
        image_embeds, video_embeds: base64 of `torch.save` or safetensors; omitted to look up `hash` in the store.
        image_grid_thw, video_grid_thw: [t, h, w], [[t, h, w]], or base64 of such a tensor.
        hash: `embedding_hash` in `contract/wire/embedding_hash.py`; sent with tensors, it stores them for later.
        model_hash: hash of the model that produced them; rejected if it is not the server's.
        timestamps: seconds, one per temporal patch of a clip: the middle between its first and its last frame.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    image_embeds: str | None = None
    video_embeds: str | None = None
    image_grid_thw: str | list[Any] | None = None
    video_grid_thw: str | list[Any] | None = None
    hash: str | None = None
    model_hash: str | None = None
    timestamps: list[Annotated[float, Field(ge=0, lt=1e7, allow_inf_nan=False)]] | None = None


class Part(BaseModel):
    """One part of a message's content; `uuid` is vLLM's cache key."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "image_embeds", "video_embeds", "image_url", "video_url"]
    text: str | None = None
    image_embeds: Embeds | None = None
    video_embeds: Embeds | None = None
    image_url: Url | str | None = None
    video_url: Url | str | None = None
    uuid: str | None = None

    @property
    def kind(self) -> str:
        """ "text", "image" or "video"."""
        return self.type.partition("_")[0]


_OPTIONS = {"image": IMAGE_OPTIONS, "video": CLIP_OPTIONS}
_VALUES = ("text", "image_embeds", "video_embeds", "image_url", "video_url")


class Function(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model made in an earlier turn."""

    model_config = ConfigDict(extra="forbid")
    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(BaseModel):
    """A message; fields that OpenAI's clients send empty are accepted empty."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(None, max_length=0)


class ChatRequest(ChatOptions):
    """The supported fields of a chat request."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None  # unchanged: the template writes their keys in this order
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def tool_names(self) -> frozenset[str]:
        """Names of the tools that the model may call; empty with `tool_choice` "none"."""
        return frozenset(tool["function"]["name"] for tool in self.usable_tools)

    @property
    def usable_tools(self) -> list[dict[str, Any]]:
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def wanted_logprobs(self) -> int | None:
        """Number of likeliest tokens to return at each position, None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse_chat(body: bytes | bytearray, max_values: int, max_text_bytes: int) -> ChatRequest:
    """A chat request from its JSON.

    Args:
        max_values: the most JSON values, the setting `max_chat_values`.
        max_text_bytes: the most bytes of text in UTF-8, the setting `max_text_kib`.

    Raises:
        InputError: not JSON, a field missing, of the wrong type, out of range or not supported; names it.
        LimitError: more JSON values or text than a chat may have.
    """
    parsed = parse_chat_as(ChatRequest, body, max_values, "max_chat_values")
    if (size := text_bytes(parsed)) > max_text_bytes:
        limit = f"at most {max_text_bytes} bytes (max_text_kib)"
        raise LimitError("the request has too much text", field="messages", expected=limit, got=f"{size} bytes")
    if parsed.top_logprobs and not parsed.logprobs:
        raise InputError("top_logprobs without logprobs", field="top_logprobs", remedy="Set logprobs to true.")
    if parsed.parallel_tool_calls is False and parsed.usable_tools:
        raise InputError("parameter is not supported", field="parallel_tool_calls", remedy="Leave it out.")
    check_stop_strings(parsed.stop_strings)
    for index, tool in enumerate(parsed.tools or ()):
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            raise InputError("a tool must be a function with a name", field=f"tools.{index}.function")
    for index, message in enumerate(parsed.messages):
        _check_message(message, f"messages.{index}")
    return parsed


def text_bytes(chat: ChatRequest) -> int:
    """Bytes, in UTF-8, of all text that becomes a part of the prompt."""
    count = utf8_bytes([json.dumps(chat.usable_tools, ensure_ascii=False)]) if chat.usable_tools else 0
    for message in chat.messages:
        parts = message.content if isinstance(message.content, list) else []
        texts = [message.content] if isinstance(message.content, str) else [part.text or "" for part in parts]
        calls = [text for call in message.tool_calls or () for text in (call.function.name, call.function.arguments)]
        count += utf8_bytes([*texts, *calls])
    return count


def _check_message(message: ChatMessage, where: str) -> None:
    if message.content is None and not message.tool_calls:
        raise InputError("message has no content", field=f"{where}.content")
    if message.tool_calls and message.role != "assistant":
        raise InputError("only an assistant calls tools", field=f"{where}.tool_calls", got=message.role)
    for number, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if getattr(part, part.type) is None:
            raise InputError(
                f"part of type {part.type} has no {part.type}",
                field=f"{where}.content.{number}",
                remedy="vLLM's parts that name nothing but a uuid are not served." if part.uuid else None,
            )
        beside = [name for name in _VALUES if name != part.type and getattr(part, name) is not None]
        if beside:  # one of the two would be ignored
            raise InputError(f"part of type {part.type} has {beside[0]} too", field=f"{where}.content.{number}")
        for url in (part.image_url, part.video_url):
            if isinstance(url, Url):
                check_options(url.options, _OPTIONS[part.kind], f"{where}.content.{number}.{part.type}")


def arguments_of(call: ToolCall, where: str) -> dict[str, Any]:
    """The arguments of a tool call.

    Raises:
        InputError: not a JSON object.
        LimitError: more JSON values than arguments may have.
    """
    check_values(call.function.arguments, MAX_ARGUMENT_VALUES, f"{where}.function.arguments")
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError("arguments must be a JSON object", field=f"{where}.function.arguments")
    return arguments
