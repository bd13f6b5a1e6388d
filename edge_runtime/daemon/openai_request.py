"""Converts the body of `POST /v1/chat/completions`, in OpenAI's format, to messages in Qwen's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.openai_chat import ChatOptions, Url, parse_chat_as
from qwen3vl_edge.edge_runtime.daemon.camera_registry import SCHEME, CameraRegistry
from qwen3vl_edge.edge_runtime.inputs.media import Message
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy
from qwen3vl_edge.edge_runtime.inputs.sources.clips import clip_file
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import open_image

MAX_VALUES = 100_000  # JSON values of a chat, whose media are text


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Url | str | None = None
    video_url: Url | str | None = None


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    refusal: str | None = None


class ChatRequest(ChatOptions):
    """A chat request: OpenAI's options and messages."""

    messages: list[ChatMessage] = Field(min_length=1)


def parse_chat(body: bytes | bytearray) -> ChatRequest:
    """A chat request from its JSON.

    Raises:
        InputError: not JSON, a field missing, of the wrong type, out of range or not supported; names it.
    """
    return parse_chat_as(ChatRequest, body, MAX_VALUES)


def fetch_messages(
    chat: list[ChatMessage], access: AccessPolicy, scratch: Path, cameras: CameraRegistry
) -> list[Message]:
    """Messages in Qwen's format: pictures decoded, clips as paths, downloaded into `scratch` if needed. Blocks.

    Raises:
        InputError, LimitError: a part without its content, or media that may not or cannot be read.
    """
    messages: list[Message] = []
    for index, message in enumerate(chat):
        content: str | list[dict[str, Any]]
        if isinstance(message.content, str):
            content = message.content
        else:
            content = [
                _part(part, f"messages.{index}.content.{number}", access, scratch, cameras)
                for number, part in enumerate(message.content)
            ]
        messages.append({"role": "system" if message.role == "developer" else message.role, "content": content})
    return messages


def _part(part: Part, where: str, access: AccessPolicy, scratch: Path, cameras: CameraRegistry) -> dict[str, Any]:
    value = getattr(part, part.type)
    if value is None:
        raise InputError(f"part of type {part.type} has no {part.type}", field=where)
    if part.type == "text":
        return {"type": "text", "text": value}
    url = value if isinstance(value, str) else value.url
    if url.startswith(SCHEME):
        return cameras.part(url, part.type.removesuffix("_url"))
    if part.type == "image_url":
        return {"type": "image", "image": open_image(url, access, "image_url")}
    return {"type": "video", "video": clip_file(url, access, scratch)}
