"""The body of `POST /v1/chat/completions`, in OpenAI's format: checked, and converted to messages in Qwen's format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.http.openai_chat import ChatOptions, Url, parse_chat_as, utf8_bytes
from qwen3vl_edge.contract.http.stop_matcher import check_stop_strings
from qwen3vl_edge.contract.pixels.part_options import CLIP_OPTIONS, IMAGE_OPTIONS, check_options
from qwen3vl_edge.edge_runtime.daemon.camera_registry import SCHEME, CameraRegistry
from qwen3vl_edge.edge_runtime.inputs.messages import Message
from qwen3vl_edge.edge_runtime.inputs.sources.access import MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture

OMITTED_URL = "about:blank"  # in place of a picture's URL, which may contain its pixels
MAX_URL_CHARACTERS = 8192  # of one that does not contain the content itself


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Url | str | None = None
    video_url: Url | str | None = None

    @property
    def kind(self) -> Literal["image", "video"]:
        return "image" if self.type == "image_url" else "video"

    @property
    def url(self) -> str:
        value = getattr(self, self.type)
        return value if isinstance(value, str) else str(value.url)

    @property
    def options(self) -> dict[str, Any]:
        """What the URL's object says beside it, such as `max_pixels` or `fps`."""
        value = getattr(self, self.type)
        return value.options if isinstance(value, Url) else {}


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    name: str | None = None
    refusal: str | None = None

    @property
    def parts(self) -> list[Part]:
        return [] if isinstance(self.content, str) else self.content

    @property
    def texts(self) -> list[str]:
        return [self.content] if isinstance(self.content, str) else [part.text or "" for part in self.content]

    def without_media(self) -> ChatMessage:
        """The same, of pictures and clips no more than that they are there."""
        if isinstance(self.content, str):
            return self
        parts = [
            part if part.type == "text" else part.model_copy(update={part.type: OMITTED_URL}) for part in self.content
        ]
        return self.model_copy(update={"content": parts})


class ChatRequest(ChatOptions):
    """A chat request: OpenAI's options and messages."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)

    def without_media(self) -> ChatRequest:
        """The same, of pictures and clips no more than that they are there."""
        return self.model_copy(update={"messages": [message.without_media() for message in self.messages]})


@dataclass(frozen=True)
class ChatLimits:
    """Limits of one request, named as the settings are; `max_text_bytes` is `max_text_kib` in bytes."""

    max_json_values: int
    max_text_bytes: int
    max_media: int


def parse_chat(body: bytes | bytearray, limits: ChatLimits) -> ChatRequest:
    """A chat request from its JSON. Takes a while for a large one: call it in a thread.

    Raises:
        InputError: not JSON, a field missing, of the wrong type, out of range or not supported; names it.
        LimitError: more JSON values, text or media than one request may have.
    """
    parsed = parse_chat_as(ChatRequest, body, limits.max_json_values, "max_json_values")
    size = utf8_bytes(text for message in parsed.messages for text in message.texts)
    if size > limits.max_text_bytes:
        limit = f"at most {limits.max_text_bytes} bytes (max_text_kib)"
        raise LimitError("the request has too much text", field="messages", expected=limit, got=f"{size} bytes")
    check_stop_strings(parsed.stop_strings)
    for where, part in _parts(parsed.messages):
        _check_part(part, where)
    media = sum(part.type != "text" for _, part in _parts(parsed.messages))
    if media > limits.max_media:
        limit = f"at most {limits.max_media} (max_media)"
        raise LimitError("the request has too many pictures and clips", field="messages", expected=limit, got=media)
    return parsed


def _check_part(part: Part, where: str) -> None:
    if getattr(part, part.type) is None:
        raise InputError(f"part of type {part.type} has no {part.type}", field=where)
    beside = [name for name in ("text", "image_url", "video_url") if name != part.type and getattr(part, name)]
    if beside:  # one of the two would be dropped
        remedy = "Make each a part of its own."
        raise InputError(f"part of type {part.type} has {beside[0]} too", field=where, remedy=remedy)
    if part.type == "text":
        return
    if len(part.url) > MAX_URL_CHARACTERS and part.url[:5].lower() != "data:":
        limit = f"at most {MAX_URL_CHARACTERS} characters, or a data URI"
        raise InputError("URL is too long", field=where, expected=limit, got=len(part.url))
    known = () if part.url.startswith(SCHEME) else IMAGE_OPTIONS if part.kind == "image" else CLIP_OPTIONS
    check_options(part.options, known, f"{where}.{part.type}")


def media_sources(chat: Sequence[ChatMessage]) -> list[MediaSource]:
    """The pictures and clips of a conversation, without those of cameras."""
    return [
        MediaSource(part.kind, part.url, part.type)
        for _, part in _parts(chat)
        if part.type != "text" and not part.url.startswith(SCHEME)
    ]


def qwen_messages(
    chat: Sequence[ChatMessage], opened: Sequence[Picture | ClipFile], cameras: CameraRegistry
) -> list[Message]:
    """Messages in Qwen's format.

    Args:
        opened: for each of `media_sources`.
        cameras: give what they see now.

    Raises:
        InputError: no such camera, or one that has no frames yet.
    """
    media = iter(opened)

    def converted(part: Part) -> dict[str, Any]:
        if part.type == "text":
            return {"type": "text", "text": part.text}
        if part.url.startswith(SCHEME):
            return cameras.part(part.url, part.kind)
        return {"type": part.kind, part.kind: next(media), **part.options}

    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.content if isinstance(message.content, str) else [*map(converted, message.content)],
        }
        for message in chat
    ]


def _parts(chat: Sequence[ChatMessage]) -> Iterator[tuple[str, Part]]:
    """Each part, and its place for errors."""
    for index, message in enumerate(chat):
        for number, part in enumerate(message.parts):
            yield f"messages.{index}.content.{number}", part
