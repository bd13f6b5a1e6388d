"""`/v1/chat/completions`: messages with text, pictures and clips, posted; and the answer's text."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx


def data_uri(source: Path | bytes) -> str:
    """A PNG, or of a path that ends in `.mp4` a clip."""
    kind = "video/mp4" if isinstance(source, Path) and source.suffix == ".mp4" else "image/png"
    data = source if isinstance(source, bytes) else source.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(source: str | Path | bytes) -> dict[str, Any]:
    """A content part: a URL, or a picture as a data URI."""
    return {"type": "image_url", "image_url": {"url": source if isinstance(source, str) else data_uri(source)}}


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    """A user's message of texts and content parts."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def post_chat(url: str, body: dict[str, Any], timeout: float = 60, **headers: str) -> httpx.Response:
    """The answer to a request's body."""
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=timeout)


def text_of(answer: dict[str, Any]) -> str:
    """The first choice's text."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


def ask(url: str, picture: Path, question: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """The daemon's answer about a picture, and the evidence beside it."""
    answer = post_chat(url, {"messages": [user(image(picture), question)], "max_tokens": 12, **options})
    assert answer.status_code == 200, answer.text
    return text_of(answer.json()), answer.json()["qwen3vl_edge"]
