"""A checkpoint's chat template, rendered as transformers' `apply_chat_template` renders it.

Settings of the environment (blocks trimmed, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, loop
controls) and the conversion of messages before: `utils/chat_template_utils.py` of transformers 5.24.
tests/edge_runtime/lean/test_prompt.py compares both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from qwen3vl_edge.contract.errors import InputError


class ChatTemplate:
    """A compiled template.

    Attributes:
        variables: names that the template reads and does not set.

    Raises:
        jinja2.TemplateError: not a template.
    """

    def __init__(self, source: str) -> None:
        from jinja2 import TemplateError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        self._template = environment.from_string(source)

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The conversation as text, the assistant's turn opened.

        Raises:
            InputError: the template refuses the conversation.
        """
        from jinja2 import TemplateError

        chat = [_message(message) for message in messages]
        try:
            return self._template.render(messages=chat, tools=None, documents=None, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            raise InputError(f"the chat template refuses the messages ({error})", field="messages") from None


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    fields = {key: _plain(value) for key, value in message.items() if value is not None}
    if isinstance(fields.get("content"), list):
        fields["content"] = [_part(part) for part in fields["content"]]
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((fields[name] for name in names if fields.get(name) is not None), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _part(part: Any) -> Any:
    """OpenAI's `image_url` as a part of type image."""
    if isinstance(part, dict) and part.get("type") == "image_url" and "image_url" in part:
        url = part["image_url"]
        return {"type": "image", "url": url.get("url", "") if isinstance(url, dict) else url}
    return part


def _plain(value: Any) -> Any:
    """Plain JSON values; of a picture a template gets no more than that there is one."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return f"<{type(value).__name__}>"
