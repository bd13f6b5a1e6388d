"""A stock vLLM behind the daemon: the answers are the unsplit model's, one image and several, turn after turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.contract.bundle.open import open_model_of
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.dev.daemon_process import DaemonProcess, running_daemon
from qwen3vl_edge.tools.parity.end_to_end import Unsplit
from tests.support.http_api.chat import image, post_chat
from tests.support.vllm.stock_server import needs_vllm, running_vllm

TOKENS = 24
pytestmark = [
    pytest.mark.slow,
    needs_vllm,
]


@pytest.fixture(scope="module")
def vllm_url(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_vllm(reference, tmp_path_factory.mktemp("vllm") / "vllm.log") as url:
        yield url


@pytest.fixture(scope="module")
def daemon(vllm_url: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    settings = 'precision = "fp32"\nserver_kind = "openai"\n'
    with running_daemon(tmp_path_factory.mktemp("daemon"), bundle, vllm_url, settings) as running:
        yield running


@pytest.fixture(scope="module")
def unsplit(edge: Edge, reference: Path) -> Unsplit:
    return Unsplit(open_model_of(edge.bundle, str(reference), patterns=("*",)))


def conversations(samples: Path) -> list[list[dict[str, Any]]]:
    """The sample questions about pictures; then the first two as one conversation, and one without a picture."""
    lines = (samples / "questions.jsonl").read_text().splitlines()
    found = [json.loads(line)["messages"] for line in lines]
    found = [messages for messages in found if not any(part["type"] == "video" for part in messages[0]["content"])]
    said = {"role": "assistant", "content": [{"type": "text", "text": "The cross is yellow."}]}
    alone = {"role": "user", "content": [{"type": "text", "text": "How many shapes do you see?"}]}
    return [*found, [*found[0], said, *found[1]], [alone]]


def as_openai(messages: list[dict[str, Any]], samples: Path) -> list[dict[str, Any]]:
    def part(item: dict[str, Any]) -> dict[str, Any]:
        return item if item["type"] == "text" else image(samples / item["image"])

    return [{**message, "content": [part(item) for item in message["content"]]} for message in messages]


def as_files(messages: list[dict[str, Any]], samples: Path) -> list[dict[str, Any]]:
    def part(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "image": str(samples / item["image"])} if item["type"] == "image" else item

    return [{**message, "content": [part(item) for item in message["content"]]} for message in messages]


def test_answers_are_the_unsplit_models(daemon: DaemonProcess, edge: Edge, unsplit: Unsplit, samples: Path) -> None:
    images = []
    for messages in conversations(samples):
        body = {"messages": as_openai(messages, samples), "max_tokens": TOKENS}
        answer = post_chat(daemon.url, body, timeout=120)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        inputs = unsplit.inputs(as_files(messages, samples), edge.policy)
        ids = unsplit.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)[0]
        expected = ids[inputs["input_ids"].shape[1] :]
        text = edge.processor.hf.tokenizer.decode(expected, skip_special_tokens=True)
        assert found["choices"][0]["message"]["content"] == text
        server = found["qwen3vl_edge"]["server"]
        assert server["prompt_agrees"], server
        assert not server["model_proven"]
        images.append(len(found["qwen3vl_edge"]["media"]))
    assert {0, 1, 2} <= set(images)


def test_a_model_it_does_not_serve_is_named(vllm_url: str, bundle: Path, tmp_path: Path) -> None:
    with running_daemon(tmp_path, bundle, vllm_url, 'server_kind = "openai"\nserver_model = "other"\n') as running:
        body = {"messages": [{"role": "user", "content": "Hello!"}]}
        answer = post_chat(running.url, body)
        assert answer.status_code == 404
        assert "other" in answer.json()["error"]["message"]
        assert httpx.get(f"{running.url}/readyz").json()["server"] != "ready"
