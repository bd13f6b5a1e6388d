"""OpenAI's chat completions as daemon and server both speak them: options of a request, and the shapes of answers.

What would change the answer and is not done here is refused by name, never ignored.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.request import Sampling

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
# Defaults that some clients write out; they ask for nothing.
_NOTHING: tuple[Any, ...] = (None, False, [], {}, 0, "auto", "none", {"type": "text"})
DONE = "data: [DONE]\n\n"


class Url(BaseModel):
    model_config = ConfigDict(extra="ignore")  # OpenAI's `detail`: the size is decided elsewhere
    url: str


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatOptions(BaseModel):
    """All of a chat request but its messages; other fields are refused, but for WITHOUT_EFFECT."""

    model_config = ConfigDict(extra="allow")
    model: str = ""
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

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


AnyChat = TypeVar("AnyChat", bound=ChatOptions)


def parse_chat_as(kind: type[AnyChat], body: bytes | bytearray) -> AnyChat:
    """A chat request from its JSON.

    Raises:
        InputError: not JSON, a field missing, of the wrong type, out of range or not supported; names it.
    """
    try:
        parsed = kind.model_validate_json(bytes(body))
    except ValidationError as error:
        # Of a union pydantic tells what each of its types lacks; the one that got furthest was meant.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        where = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or "body"
        raise InputError(f"bad request: {first['msg'].lower()}"[:300], field=where[:120]) from None
    for name, value in (parsed.model_extra or {}).items():
        if name not in WITHOUT_EFFECT and value not in _NOTHING:
            raise InputError("parameter is not supported", field=name[:80], remedy="Leave it out.")
    return parsed


def _is_branch(part: int | str) -> bool:
    """Whether a step of pydantic's path names a type of a union and no field."""
    return isinstance(part, str) and (part in ("str", "Url") or "[" in part)


def sampling_of(request: ChatOptions, default_max_tokens: int) -> Sampling:
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


def head(request_id: str, model: str, kind: str) -> dict[str, Any]:
    """What every object of an answer begins with.

    Args:
        kind: "chat.completion" or "chat.completion.chunk".
    """
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts; visual tokens are a part of the prompt's."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
