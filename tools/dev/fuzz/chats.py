"""Chat bodies whose pictures are embeddings, in every container that is read."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from qwen3vl_edge.contract.wire.codec import encode_medium
from qwen3vl_edge.contract.wire.request import MediaEmbeddings


def chat_bodies(image: MediaEmbeddings, clip: MediaEmbeddings, model_hash: str) -> Iterator[tuple[str, bytes]]:
    """(name, body) of each kind; those with a hash bring it along, so that it is held for the last."""
    grid, rows = image.grid.as_list(), np.concatenate(image.arrays, axis=1)
    whole = bytes(encode_medium(image, model_hash))
    for name, value in (
        ("torch.save", {"image_embeds": _torch(rows), "image_grid_thw": _torch(np.array(grid, np.int64))}),
        (
            "float32",
            {"image_embeds": _torch(rows.astype(np.float32)), "image_grid_thw": grid, "model_hash": model_hash},
        ),
        ("safetensors", {"image_embeds": _b64(save({"x": rows})), "image_grid_thw": [grid], "hash": image.hash}),
        ("container", {"image_embeds": _b64(whole)}),
        ("hash", {"hash": image.hash, "image_grid_thw": grid}),
    ):
        question = {"type": "text", "text": "What?"}
        yield f"chat, {name}", _body([{"type": "image_embeds", "image_embeds": value}, question])
    frames = np.concatenate(clip.arrays, axis=1)
    moving = {"video_embeds": _torch(frames), "video_grid_thw": clip.grid.as_list(), "timestamps": [0.5, 1.5]}
    options = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}
    yield "chat, clip, streamed", _body([{"type": "video_embeds", "video_embeds": moving}], **options)
    sampled = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "seed": 1, "n": 1, "stop": ["x"]}
    words = (("system", "Be brief."), ("user", "a"), ("assistant", "b"))
    history = [{"role": role, "content": text} for role, text in words]
    yield "chat, text", _body("What?", history, **sampled)


def _body(content: Any, history: Any = (), **more: Any) -> bytes:
    return json.dumps({"messages": [*history, {"role": "user", "content": content}], "max_tokens": 1, **more}).encode()


def _torch(array: Any) -> str:
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(array)), buffer)
    return _b64(buffer.getvalue())


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
