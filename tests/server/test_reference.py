"""The reference checkpoint, its own processor and real pictures: the split answers as the unsplit model does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling
from qwen3vl_edge.tools.server_process import ServerProcess, running_server
from tests.support.http_api.generate import post
from tests.support.paths import ROOT

MODEL, SAMPLES = ROOT / "reference" / "qwen3vl-tiny", ROOT / "reference" / "samples"
TOKENS = 24
pytestmark = pytest.mark.skipif(
    not (MODEL / "model.safetensors").exists() or not (SAMPLES / "questions.jsonl").exists(),
    reason="reference/qwen3vl-tiny is not there",
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(threads=1, model=str(MODEL)) as running:
        yield running


@pytest.fixture(scope="module")
def unsplit() -> Any:
    torch.set_num_threads(1)
    return Qwen3VLForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()


def picture_messages() -> list[list[dict[str, Any]]]:
    """Conversations of the samples that hold pictures and no clips, each picture opened."""
    conversations = []
    for line in (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        parts = [part for message in messages for part in message["content"] if isinstance(part, dict)]
        if any(part["type"] == "video" for part in parts):
            continue
        for part in parts:
            if part["type"] == "image":
                part["image"] = Image.open(SAMPLES / Path(part["image"]).name).convert("RGB")
        conversations.append(messages)
    return conversations


def request_of(unsplit: Any, inputs: Any, dtype: str) -> GenerateRequest:
    with torch.no_grad():
        output = unsplit.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    media = [
        MediaEmbeddings(
            "image",
            Grid(*grid),
            output.pooler_output[index].numpy().astype(dtype),
            tuple(level[index].numpy().astype(dtype) for level in output.deepstack_features),
        )
        for index, grid in enumerate(inputs["image_grid_thw"].tolist())
    ]
    ids = inputs["input_ids"][0].numpy().astype(np.int64)
    hashed = open_checkpoint(str(MODEL)).model_hash
    return GenerateRequest(hashed, ids, tuple(media), sampling=Sampling(max_new_tokens=TOKENS))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_answers_equal_the_unsplit_model(server: ServerProcess, unsplit: Any, dtype: str) -> None:
    processor = AutoProcessor.from_pretrained(MODEL)
    conversations = picture_messages()
    assert conversations
    for messages in conversations:
        inputs = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        expected = unsplit.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)[0, inputs["input_ids"].shape[1] :]
        answer = post(server.url, request_of(unsplit, inputs, dtype)).json()
        assert answer["generated_ids"] == expected.tolist()
        assert answer["text"] == processor.tokenizer.decode(expected, skip_special_tokens=True)
