"""A network that cuts connections at random: every answer comes whole, once, and was generated once."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cutting_proxy import cutting_proxy
from metric_values import metric

from contract.errors import ServerUnavailableError
from contract.request import GenerateRequest, Sampling
from contract.wire import encode_request
from edge_runtime.ask import build_messages
from edge_runtime.async_client import AsyncClient
from edge_runtime.client import Event, generate
from edge_runtime.edge import Edge
from tools.server_process import running_server

REQUESTS = 30


@pytest.fixture(scope="module")
def request_of(edge: Edge, samples: Path) -> GenerateRequest:
    messages = build_messages("What colour is the circle?", [str(samples / "colour.png")], [])
    return replace(edge.encode(messages, Sampling(max_new_tokens=32)).request, stream=True)


async def ask(client: AsyncClient, request: GenerateRequest, deadline_s: float = 60.0) -> list[Event]:
    return [event async for event in client.stream(encode_request(request), deadline_s, request.request_id)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_answers_cut_at_random_places_come_whole_and_once(request_of: GenerateRequest, server_url: str) -> None:
    whole = generate(server_url, encode_request(replace(request_of, stream=False)))
    ways = (request_of.sampling, Sampling(max_new_tokens=32, do_sample=True, temperature=2.0))
    requests = [
        replace(request_of, request_id=f"cut {index} {os.getpid()}", sampling=ways[index % 2])
        for index in range(REQUESTS)
    ]
    before = metric(server_url, "qwen3vl_edge_generations_total")

    async def all_of_them(url: str) -> list[list[Event]]:
        places = asyncio.Semaphore(6)
        async with AsyncClient(url) as client:

            async def one(request: GenerateRequest) -> list[Event]:
                async with places:
                    return await ask(client, request)

            return await asyncio.gather(*(one(request) for request in requests))

    with cutting_proxy(server_url, seed=5, longest=1500) as proxy:
        answers = asyncio.run(all_of_them(proxy.url))
    assert proxy.cuts > REQUESTS // 2
    assert metric(server_url, "qwen3vl_edge_generations_total") == before + REQUESTS
    for index, events in enumerate(answers):
        final = events[-1].final
        assert final is not None
        assert [event.final for event in events[:-1]] == [None] * (len(events) - 1)
        assert text_of(events) == final["text"]
        if index % 2 == 0:
            assert final["generated_ids"] == whole["generated_ids"]
    # The answers that were cut are answers of one generation each, not all the same one.
    assert len({text_of(events) for events in answers[1::2]}) > 1


def test_a_connection_that_falls_silent_is_given_up_for_another(request_of: GenerateRequest, server_url: str) -> None:
    async def run(url: str) -> list[Event]:
        async with AsyncClient(url, silence_s=0.5) as client:
            return await ask(client, replace(request_of, request_id=f"silent {os.getpid()}"))

    with cutting_proxy(server_url, seed=1, longest=400, share=0.6) as proxy:
        proxy.stall = True
        events = asyncio.run(run(proxy.url))
    assert proxy.cuts > 0
    assert events[-1].final is not None
    assert text_of(events) == events[-1].final["text"]


def test_a_server_that_restarted_into_another_answer_is_noticed(reference: Path, request_of: GenerateRequest) -> None:
    """Sampled, so the second server's answer is another one: an error, never a mixture."""
    sampling = Sampling(max_new_tokens=400, do_sample=True, temperature=5.0)
    request = replace(request_of, sampling=sampling)

    async def run(url: str, restart: asyncio.Event) -> list[Event]:
        found = []
        async with AsyncClient(url) as client:
            async for event in client.stream(encode_request(request), 60, "restarted"):
                found.append(event)
                if len(found) == 8:
                    restart.set()
                    await asyncio.sleep(0)
                    await restarted.wait()
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
