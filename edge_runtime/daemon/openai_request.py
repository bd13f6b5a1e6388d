"""`POST /v1/chat/completions` as OpenAI's clients send it, into messages in Qwen's format and sampling.

What would change the answer and is not done here is refused by name, never ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.errors import InputError
from contract.request import Sampling
from edge_runtime.daemon.cameras import SCHEME, Cameras
from edge_runtime.daemon.media_access import MediaAccess, fetch_clip, fetch_image
from edge_runtime.media import Message

# They name the caller or ask for bookkeeping; the answer is the same without them.
WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
        "stream_options",
    }
)

_BRANCHES = ("str", "list[Part]", "list[str]", "Url")


class Url(BaseModel):
    model_config = ConfigDict(extra="ignore")  # OpenAI's `detail`: the bucket decides the size here
    url: str


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


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields that are understood; others are refused, but for WITHOUT_EFFECT."""

    model_config = ConfigDict(extra="allow")
    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    n: Literal[1] | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in found if text)


def parse_chat(body: bytes | bytearray) -> ChatRequest:
    """A chat request from its JSON.

    Raises:
        InputError: not JSON, a field missing, of the wrong type, out of range or not supported; names it.
    """
    try:
        parsed = ChatRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        # Of a union pydantic tells what each of its types lacks; the one that got furthest was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        where = ".".join(str(part) for part in first["loc"] if part not in _BRANCHES) or "body"
        raise InputError(f"bad request: {first['msg'].lower()}", field=where) from None
    for name, value in (parsed.model_extra or {}).items():
        # A client's default that asks for nothing is let through.
        if name not in WITHOUT_EFFECT and value not in (None, False, [], {}, 0, "auto", "none", {"type": "text"}):
            raise InputError("parameter is not supported", field=name[:80], remedy="Leave it out.")
    return parsed


def sampling_of(request: ChatRequest, default_max_tokens: int) -> Sampling:
    """Sampling as the server takes it. Without a temperature, or at 0, the answer is greedy."""
    values: dict[str, Any] = {
        "max_new_tokens": request.max_completion_tokens or request.max_tokens or default_max_tokens,
        "seed": request.seed,
        "min_p": request.min_p,
    }
    if request.temperature:
        values |= {"do_sample": True, "temperature": request.temperature, "top_k": 0}
    for name in ("top_p", "top_k", "repetition_penalty"):
        if (value := getattr(request, name)) is not None:
            values[name] = value
    return Sampling.from_dict(values)


def fetch_messages(chat: list[ChatMessage], access: MediaAccess, scratch: Path, cameras: Cameras) -> list[Message]:
    """Messages in Qwen's format: pictures decoded, clips in files of `scratch` or where they lie. Blocks.

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


def _part(part: Part, where: str, access: MediaAccess, scratch: Path, cameras: Cameras) -> dict[str, Any]:
    value = getattr(part, part.type)
    if value is None:
        raise InputError(f"part of type {part.type} has no {part.type}", field=where)
    if part.type == "text":
        return {"type": "text", "text": value}
    url = value if isinstance(value, str) else value.url
    if url.startswith(SCHEME):
        return cameras.part(url, part.type.removesuffix("_url"))
    if part.type == "image_url":
        return {"type": "image", "image": fetch_image(url, access)}
    return {"type": "video", "video": fetch_clip(url, access, scratch)}
