"""OpenAI's chat completions, shared by daemon and server: request options and the shapes of answers.

A parameter that would change the answer and is not supported is rejected by name, never ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen3vl_edge.contract.errors import ContractError, InputError, WireError
from qwen3vl_edge.contract.formats.strict_json import check_values
from qwen3vl_edge.contract.pixels.processor_arguments import ProcessorArguments, read_processor_arguments
from qwen3vl_edge.contract.wire.request import Sampling

# They identify the caller or request bookkeeping; they do not change the answer.
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
# Defaults that some clients send explicitly; they have no effect.
_NOTHING: tuple[Any, ...] = (None, False, [], {}, 0, "auto", "none", {"type": "text"})
DONE = "data: [DONE]\n\n"


class Url(BaseModel):
    """A URL, and what is said beside it. OpenAI's `detail` has no effect: the bucket determines the size."""

    model_config = ConfigDict(extra="allow")
    url: str

    @property
    def options(self) -> dict[str, Any]:
        """All that is said beside it, without `detail` and what is null."""
        return {
            name: value for name, value in (self.model_extra or {}).items() if name != "detail" and value is not None
        }


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatOptions(BaseModel):
    """All fields of a chat request except its messages; unknown fields are rejected, except WITHOUT_EFFECT."""

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
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Any] | None = None  # by token id; checked by `Sampling`
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None

    @property
    def processor_arguments(self) -> ProcessorArguments:
        """Limits of pictures and clips.

        Raises:
            InputError: an argument that is not supported.
        """
        return read_processor_arguments(self.mm_processor_kwargs)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stops if text)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token usage."""
        return self.stream_options is not None and self.stream_options.include_usage


AnyChat = TypeVar("AnyChat", bound=ChatOptions)


def parse_chat_as(kind: type[AnyChat], body: bytes | bytearray, max_values: int, setting: str | None = None) -> AnyChat:
    """A chat request from its JSON. Takes a second for the largest: call it in a thread.

    Args:
        max_values: the most JSON values of the body.
        setting: the setting that sets this limit, None where it is fixed.

    Raises:
        InputError: not JSON, a field missing, of the wrong type, out of range or not supported; names it.
        LimitError: more than `max_values` values; found before it is parsed.
    """
    check_values(body, max_values, "body", setting)
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        # For a union, pydantic reports the errors of each type; the deepest one belongs to the intended type.
        details = error.errors(include_url=False, include_context=False, include_input=False)
        first = max(details, key=lambda detail: len(detail["loc"]))
        where = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or "body"
        raise InputError(f"bad request: {first['msg'].lower()}"[:300], field=where[:120]) from None
    for name, value in (parsed.model_extra or {}).items():
        if name not in WITHOUT_EFFECT and value not in _NOTHING:
            raise InputError("parameter is not supported", field=name[:80], remedy="Leave it out.")
    _ = parsed.processor_arguments
    return parsed


def _is_branch(part: int | str) -> bool:
    """Whether a step of pydantic's path names a type of a union instead of a field."""
    return isinstance(part, str) and (part in ("str", "Url") or "[" in part)


def utf8_bytes(texts: Iterable[str]) -> int:
    """Bytes of texts in UTF-8; lone surrogates, which JSON may contain, count as what replaces them."""
    return sum(len(text.encode(errors="replace")) for text in texts)


def sampling_of(request: ChatOptions, default_max_tokens: int) -> Sampling:
    """The contract's sampling parameters. Without a temperature, or at 0, decoding is greedy.

    Raises:
        WireError: a value out of range; names the chat's field.
    """
    values: dict[str, Any] = {
        "max_new_tokens": request.max_completion_tokens or request.max_tokens or default_max_tokens,
        "seed": request.seed,
        "min_p": request.min_p,
    }
    if request.temperature:
        values |= {"do_sample": True, "temperature": request.temperature, "top_k": 0}
    for name in ("top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"):
        if (value := getattr(request, name)) is not None:
            values[name] = value
    try:
        return Sampling.from_dict(values)
    except WireError as error:
        name_chat_field(error)
        raise


def name_chat_field(error: ContractError) -> None:
    """Give an error about a sampling parameter or the prompt the chat's name for it."""
    names = {"sampling.max_new_tokens": "max_tokens", "input_ids": "messages"}
    if error.field is not None:
        error.field = names.get(error.field, error.field.removeprefix("sampling."))


def head(request_id: str, model: str, kind: str) -> dict[str, Any]:
    """The fields that every object of an answer starts with.

    Args:
        kind: "chat.completion" or "chat.completion.chunk".
    """
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts; prompt tokens include the visual tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
