"""A conversation as token ids: the checkpoint's own chat template, placeholders expanded as Qwen's processor does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.machine.free_memory import return_free_memory
from qwen3vl_edge.contract.wire.request import Limits, ModelShape
from qwen3vl_edge.server.openai.parts import Medium
from qwen3vl_edge.server.openai.request import ChatMessage, ChatRequest, Part, arguments_of

Message = dict[str, Any]
# Characters from which tokenizing leaves so much free memory in its thread that it is returned at once.
LONG_TEXT = 2**16


@dataclass(frozen=True)
class PromptWriter:
    """Writes prompts for one model."""

    tokenizer: Any
    shape: ModelShape
    limits: Limits

    def write(self, chat: ChatRequest, media: Sequence[Medium]) -> NDArray[np.int64]:
        """Token ids [L] of the conversation, up to the start of the assistant's turn.

        Args:
            media: the media of its parts, in order.

        Raises:
            InputError: the template rejects the conversation or does not support a part of it, or its text contains
                placeholders.
            LimitError: the prompt is too long.
        """
        text = self._expanded(self.render(chat), media, chat)
        # Reject, before tokenizing, text that must have more tokens than allowed; NFC may join a few characters to
        # one.
        if len(text) > 4 * self.limits.max_prompt_tokens * _longest_token(self.tokenizer):
            limit = f"at most {self.limits.max_prompt_tokens} tokens"
            raise LimitError("too many prompt tokens", field="messages", expected=limit, got=f"{len(text)} characters")
        # The same ids as calling the tokenizer, in two thirds of its memory: without the offsets of each token.
        (encoding,) = self.tokenizer.backend_tokenizer.encode_batch_fast([text])
        ids = np.array(encoding.ids, dtype=np.int64)
        del encoding
        if len(text) > LONG_TEXT:
            return_free_memory()
        return ids

    def render(self, chat: ChatRequest) -> str:
        """The conversation as text, one placeholder per medium.

        Raises:
            InputError: as `write`.
        """
        messages = [_message(message, f"messages.{index}") for index, message in enumerate(chat.messages)]
        tools = chat.usable_tools
        text = self._rendered(messages, tools)
        # A template without support for tools would drop them silently.
        if tools and text == self._rendered(messages, []):
            raise _not_in_template("tools", "tools")
        without = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        if without != messages and text == self._rendered(without, tools):
            raise _not_in_template("calls of tools", "messages.tool_calls")
        return text

    def _rendered(self, messages: list[Message], tools: list[Message]) -> str:
        if self.tokenizer.chat_template is None:
            raise InputError(
                "the checkpoint has no chat template",
                field="messages",
                remedy="Send token ids to /v1/generate, or add chat_template.jinja to the checkpoint.",
            )
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"the chat template refuses the messages ({error})"[:300], field="messages") from None
        return text

    def _expanded(self, text: str, media: Sequence[Medium], chat: ChatRequest) -> str:
        """Repeat each placeholder once per visual token; for a clip, write a timestamp before each frame."""
        tokens = {kind: self._token(kind) for kind in ("image", "video")}
        waiting = {kind: [item for item in media if item.media.kind == kind] for kind in tokens}
        counts = {kind: (len(waiting[kind]), text.count(token)) for kind, token in tokens.items()}
        if any(media > placeholders for media, placeholders in counts.values()):
            _check_roles(chat, media)
        if any(media != placeholders for media, placeholders in counts.values()):
            raise InputError(
                "placeholders in the text do not match the images and clips",
                field="messages",
                expected=", ".join(f"{counts[kind][0]} {token}" for kind, token in tokens.items()),
                got=", ".join(str(placeholders) for _, placeholders in counts.values()),
                remedy="Take placeholders out of the text; the chat template writes them.",
            )

        def spelled(match: re.Match[str]) -> str:
            kind = "image" if match[0] == tokens["image"] else "video"
            item = waiting[kind].pop(0)
            count = item.grid.tokens(self.shape.merge_size)
            if kind == "image":
                return match[0] * count
            start, end = self._mark("vision_start"), self._mark("vision_end")
            frame = start + match[0] * (count // item.grid.t) + end
            return "".join(f"<{seconds:.1f} seconds>{frame}" for seconds in item.timestamps)

        return re.sub("|".join(re.escape(token) for token in tokens.values()), spelled, text)

    def _token(self, kind: str) -> str:
        number = self.shape.image_token_id if kind == "image" else self.shape.video_token_id
        return str(self.tokenizer.convert_ids_to_tokens(number))

    def _mark(self, name: str) -> str:
        return str(getattr(self.tokenizer, f"{name}_token", None) or f"<|{name}|>")


def _check_roles(chat: ChatRequest, media: Sequence[Medium]) -> None:
    """The template wrote fewer placeholders than there are media: Qwen's shows only those of users."""
    for item in media:
        role = chat.messages[int(item.where.split(".")[1])].role
        if role != "user":
            raise InputError(
                "the chat template shows no picture or clip here",
                field=item.where,
                expected="pictures and clips in messages of the user",
                got=f"one in a message of the {role}",
                remedy="Put it into a message of the user.",
            )


@lru_cache(maxsize=4)
def _longest_token(tokenizer: Any) -> int:
    """Most characters of a token; a byte-level token has at most one per byte."""
    return max(len(token) for token in tokenizer.get_vocab())


def _message(message: ChatMessage, where: str) -> Message:
    """A message in the template's form, in which a medium is only a placeholder."""
    content = message.content
    written: Message = {
        "role": "system" if message.role == "developer" else message.role,
        "content": content if isinstance(content, str) else [_part(part) for part in content or []] or "",
    }
    if message.tool_calls:
        written["tool_calls"] = [
            {
                **({} if call.id is None else {"id": call.id}),
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": arguments_of(call, f"{where}.tool_calls.{number}"),
                },
            }
            for number, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    return written


def _part(part: Part) -> Message:
    return {"type": "text", "text": part.text} if part.type == "text" else {"type": part.kind}


def _not_in_template(what: str, field: str) -> InputError:
    return InputError(
        f"the checkpoint's chat template has no {what}",
        field=field,
        remedy="Leave them out, or use another checkpoint.",
    )
