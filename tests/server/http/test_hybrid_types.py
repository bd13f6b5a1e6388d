"""Servers of Qwen3.5 over HTTP: a device's embeddings, and with `--allow-pixels` a client's picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.tools.server_process import running_server
from tests.support.model_types.tiny_checkpoint import oracle_of, tiny_checkpoint
from tests.support.server_checkpoint import build_case

TOKENS = 12


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, httpx.Client]]:
    kind = str(request.param)
    with (
        running_server(threads=1, model=str(tiny_checkpoint(kind)), allow_pixels=True) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield kind, client


def test_embeddings_are_answered_as_pixels(served: tuple[str, httpx.Client]) -> None:
    kind, client = served
    for name in ("two images", "image and clip", "multi-turn"):
        case = build_case(oracle_of(kind), name, max_new_tokens=TOKENS)
        answer = client.post(
            "/v1/generate", content=bytes(encode_request(case.request)), headers={"Content-Type": CONTENT_TYPE}
        ).json()
        assert answer["generated_ids"] == oracle_of(kind).greedy(case, TOKENS)
    assert client.get("/v1/models").json()["data"][0]["deepstack_levels"] == 0


def test_a_picture_is_encoded_as_by_the_unsplit_model(served: tuple[str, httpx.Client]) -> None:
    kind, client = served
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    question = {"type": "text", "text": "What is in the picture?"}

    def messages(part: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [part, question]}]

    answer = client.post(
        "/v1/chat/completions",
        json={
            "model": client.get("/v1/models").json()["data"][0]["id"],
            "messages": messages({"type": "image_url", "image_url": {"url": url}}),
            "max_tokens": TOKENS,
            "temperature": 0,
        },
    ).json()
    processor = AutoProcessor.from_pretrained(tiny_checkpoint(kind))
    inputs = processor.apply_chat_template(
        messages({"type": "image", "image": image}),
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    model = oracle_of(kind).model
    model.model.rope_deltas = None
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)[0, inputs["input_ids"].shape[1] :]
    assert answer["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert answer["choices"][0]["message"]["content"] == processor.decode(ids, skip_special_tokens=True)
