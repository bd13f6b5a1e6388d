"""The reference checkpoint unsplit, and chats with its embeddings in each form that a server takes."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from qwen3vl_edge.contract.wire.codec import encode_medium
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, load_processor, prepare_prompt
from tests.support.http_api.chat import image
from tests.support.paths import ROOT
from tests.support.pixel_policies import native_policy

REFERENCE = ROOT / "reference" / "qwen3vl-tiny"
SAMPLES = ROOT / "reference" / "samples"


@cache
def unsplit() -> Any:
    """The whole model in fp32."""
    return Qwen3VLForConditionalGeneration.from_pretrained(REFERENCE, dtype=torch.float32).eval()


@cache
def processor() -> Any:
    return load_processor(REFERENCE)


@contextmanager
def one_thread() -> Iterator[None]:
    """For models so small that threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Question:
    """A sample question as the device prepares it."""

    messages: list[dict[str, Any]]
    prompt: Prompt

    @cached_property
    def media(self) -> tuple[MediaEmbeddings, ...]:
        """From the unsplit model's own encoder, in fp32."""
        model, media = unsplit(), []
        with one_thread():
            for item in self.prompt.media:
                encode = model.get_image_features if item.kind == "image" else model.get_video_features
                output = encode(torch.from_numpy(item.input.pixel_values), torch.tensor([item.grid.as_list()]))
                levels = tuple(level[0].numpy() for level in output.deepstack_features)
                media.append(MediaEmbeddings(item.kind, item.grid, output.pooler_output[0].numpy(), levels))
        return tuple(media)

    @cached_property
    def answer(self) -> str:
        """The unsplit model's own, greedy, from pixels."""
        model = unsplit()
        model.model.rope_deltas = None
        with one_thread():
            found = model.generate(**self.prompt.inputs, do_sample=False, max_new_tokens=24)
        ids = found[0, self.prompt.input_ids.size :]
        text = processor().hf.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    @property
    def timestamps(self) -> list[float]:
        """Of the clip's temporal patches, as the device's prompt tells them."""
        text = processor().hf.tokenizer.decode(self.prompt.input_ids)
        return [float(number) for number in re.findall(r"<(\d+\.\d) seconds>", text)]


@cache
def questions() -> dict[str, Question]:
    """The sample questions by id."""
    rows = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()]
    return {row["id"]: _question(row["messages"]) for row in rows}


def _question(messages: list[dict[str, Any]]) -> Question:
    found = []
    for message in messages:
        parts = [
            part if part["type"] == "text" else {**part, part["type"]: str(SAMPLES / part[part["type"]])}
            for part in message["content"]
        ]
        found.append({**message, "content": parts})
    return Question(found, prepare_prompt(found, processor(), native_policy()))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def torch_saved(value: Any) -> str:
    buffer = io.BytesIO()
    torch.save(torch.as_tensor(value), buffer)
    return b64(buffer.getvalue())


def joined(item: MediaEmbeddings) -> Any:
    """Embeddings and DeepStack levels side by side, [n, D·(1 + levels)]."""
    return np.concatenate([item.embeds, *item.deepstack], axis=1)


def part_of(
    item: MediaEmbeddings, form: str, model_hash: str = "", timestamps: list[float] | None = None
) -> dict[str, Any]:
    """A content part: `form` is "vllm", "vllm-row", "safetensors", "medium" or "hash"."""
    name, grid = f"{item.kind}_embeds", item.grid.as_list()
    value: dict[str, Any] = {f"{item.kind}_grid_thw": grid}
    if form in ("vllm", "vllm-row"):
        rows = [grid] if form == "vllm-row" else grid
        value = {name: torch_saved(joined(item)), f"{item.kind}_grid_thw": torch_saved(rows)}
    elif form == "safetensors":
        from safetensors.numpy import save

        value |= {name: b64(save({"embeds": joined(item)})), "model_hash": model_hash}
    elif form == "medium":
        value = {name: b64(bytes(encode_medium(item, model_hash)))}
    elif form == "hash":
        value |= {"hash": embedding_hash(item, model_hash)}
    if item.kind == "video":
        value["timestamps"] = timestamps
    return {"type": name, name: value}


def chat_of(question: Question, form: str, model_hash: str = "") -> list[dict[str, Any]]:
    """The question as OpenAI's messages; media as pixels, or as embeddings in a form of `part_of`."""
    media = iter(question.media)
    found = []
    for message in question.messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append(part)
            elif form == "pixels":
                parts.append(image(Path(part["image"])))
            else:
                parts.append(part_of(next(media), form, model_hash, question.timestamps))
        found.append({**message, "content": parts})
    return found
