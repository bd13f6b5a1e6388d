"""What the soak asks: conversations of every structure about rendered pictures, as OpenAI's JSON."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.train_reference.heldout import mixed_prompts

SOAK_SEED = 40_000_000


@dataclass(frozen=True)
class SoakPrompt:
    """One conversation: its name and the messages."""

    name: str
    messages: list[dict[str, Any]]


def soak_prompts(count: int) -> list[SoakPrompt]:
    """`count` conversations: one picture, several, clips, both, several turns, text alone; sizes mixed."""
    return [
        SoakPrompt(item.id, [_message(message) for message in item.messages])
        for item in mixed_prompts(count, SOAK_SEED)
    ]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return {
        "role": message["role"],
        "content": content if isinstance(content, str) else [_part(part) for part in content],
    }


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if "image" in part:
        buffer = io.BytesIO()
        part["image"].save(buffer, "PNG")
        return {"type": "image_url", "image_url": {"url": _data_uri("image/png", buffer.getvalue())}}
    if "video" in part:
        return {"type": "video_url", "video_url": {"url": _data_uri("video/mp4", Path(part["video"]).read_bytes())}}
    return {"type": "text", "text": part["text"]}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
