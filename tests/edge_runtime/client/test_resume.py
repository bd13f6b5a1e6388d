"""Connections that fall silent, and a server that lost what it had begun: no answer is mixed of two."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from dataclasses import replace
from itertools import islice
from pathlib import Path

import httpx
import pytest

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.edge_runtime.ask import build_messages
from qwen3vl_edge.edge_runtime.client.answers import Event
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import image, user
from tests.support.stalling_proxy import stalling_proxy


@pytest.fixture(scope="module")
def request_of(edge: Edge, samples: Path) -> GenerateRequest:
    messages = build_messages("What colour is the circle?", [str(samples / "colour.png")], [])
    return replace(edge.encode(messages, Sampling(max_new_tokens=32)).request, stream=True)


async def ask(client: AsyncClient, request: GenerateRequest, deadline_s: float = 60.0) -> list[Event]:
    return [event async for event in client.stream(encode_request(request), deadline_s, request.request_id)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_a_connection_that_falls_silent_is_given_up_for_another(request_of: GenerateRequest, server_url: str) -> None:
    async def run(url: str) -> list[Event]:
        async with AsyncClient(url, silence_s=0.5) as client:
            return await ask(client, replace(request_of, request_id=f"silent {os.getpid()}"))

    with stalling_proxy(server_url, seed=1, longest=400, share=0.6) as proxy:
        events = asyncio.run(run(proxy.url))
    assert proxy.stalls > 0
    assert events[-1].final is not None
    assert text_of(events) == events[-1].final["text"]


@pytest.mark.slow
def test_a_server_that_restarted_into_another_answer_is_noticed(reference: Path, request_of: GenerateRequest) -> None:
    """Sampled, so the second server's answer is another one: an error, never a mixture."""
    # Nearly uniform over the vocabulary: an answer that ends within 8 tokens is one in 200.
    sampling = Sampling(max_new_tokens=400, do_sample=True, temperature=100.0, top_k=0)
    request = replace(request_of, sampling=sampling)

    async def run(url: str, restart: asyncio.Event) -> list[Event]:
        found = []
        try:
            async with AsyncClient(url) as client:
                async for event in client.stream(encode_request(request), 60, "restarted"):
                    found.append(event)
                    if len(found) == 8:
                        restart.set()
                        await asyncio.sleep(0)
                        await restarted.wait()
        finally:
            restart.set()  # also where the answer was too short, so that the test fails and does not hang
        return found

    restarted = asyncio.Event()

    async def both() -> list[Event]:
        restart = asyncio.Event()
        with running_server(model=str(reference), dtype="float32") as first:
            port = int(first.url.rsplit(":", 1)[1])
            answer = asyncio.create_task(run(first.url, restart))
            await restart.wait()
            first.process.kill()
            first.process.wait()
        with running_server(model=str(reference), dtype="float32", port=port):
            restarted.set()
            return await answer

    with pytest.raises(ServerUnavailableError, match="began another"):
        asyncio.run(both())


def test_a_clients_own_key_through_the_daemon_is_one_answer(
    tmp_path: Path, bundle: Path, samples: Path, server_url: str
) -> None:
    """Sampled: who gave up in the middle gets, on asking again, what was generated for the first time."""
    body = {
        "messages": [user(image(samples / "colour.png"), "What is in the picture?")],
        "max_tokens": 200,
        "temperature": 2.0,
    }
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    with running_daemon(tmp_path, bundle, server_url) as running:
        url = f"{running.url}/v1/chat/completions"
        with httpx.stream("POST", url, json={**body, "stream": True}, headers=headers) as response:
            lines = (line for line in response.iter_lines() if line and "[DONE]" not in line)  # a few are very short
            begun = [json.loads(line[6:]) for line in islice(lines, 4)]
        again = [httpx.post(url, json=body, headers=headers, timeout=60).json() for _ in range(2)]
        refused = httpx.post(url, json={**body, "max_tokens": 5}, headers=headers, timeout=60)
    assert again[0]["choices"] == again[1]["choices"]
    seen = "".join(event["choices"][0]["delta"].get("content") or "" for event in begun)
    assert again[0]["choices"][0]["message"]["content"].startswith(seen)
    assert {event["id"] for event in begun} == {again[0]["id"]} == {again[1]["id"]}
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
