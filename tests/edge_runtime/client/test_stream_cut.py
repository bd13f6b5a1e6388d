"""A stream whose connection is cut again and again: every token comes once, and the server generates once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.edge_runtime.client.answers import Event
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.tools.server_process import ServerProcess, running_server
from tests.support.http_api.metrics import metric
from tests.support.server_checkpoint import make_case, make_checkpoint

REQUESTS, CUTS, TOKENS = 16, 3, 40


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(threads=1, model=str(make_checkpoint()), max_queue=64) as running:
        yield running


class CuttingProxy:
    """TCP to the server; the first `cuts` connections are reset after a random number of bytes of either direction."""

    def __init__(self, server: str, chance: random.Random, cuts: int, body: int, answer: int) -> None:
        self._host, self._port = server.removeprefix("http://").split(":")
        self._chance, self.cuts, self._body, self._answer = chance, cuts, body, answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, int(self._port))
        up, down = 1 << 60, 1 << 60
        if self.cuts > 0:
            self.cuts -= 1
            if self._chance.random() < 0.3:
                up = self._chance.randint(1, self._body)
            else:
                down = self._chance.randint(1, self._answer)
        await asyncio.wait(
            [
                asyncio.create_task(pass_on(reader, up_writer, up)),
                asyncio.create_task(pass_on(up_reader, writer, down)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for end in (writer, up_writer):
            end.transport.abort()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    """Bytes from one end to the other until `limit` of them went by, or an end is gone."""
    try:
        while limit > 0 and (chunk := await reader.read(min(limit, 4096))):
            writer.write(chunk)
            await writer.drain()
            limit -= len(chunk)
    except ConnectionError:
        pass  # an end is gone: so is the other, soon


def requests_of(kind: str) -> list[GenerateRequest]:
    names = ("one image", "text only", "image and clip", "multi-turn")
    found = []
    for number in range(REQUESTS // 2):
        sampling = Sampling(max_new_tokens=TOKENS)
        if kind == "sampled":
            sampling = Sampling(max_new_tokens=TOKENS, do_sample=True, temperature=1.5, seed=number)
        case = make_case(names[number % len(names)])
        found.append(replace(case.request, sampling=sampling, stream=True))
    return found


def started(url: str) -> float:
    return metric(url, 'qwen3vl_edge_idempotent_requests_total{outcome="started"}')


async def told(url: str, request: GenerateRequest) -> list[Event]:
    async with AsyncClient(url) as client:
        return [event async for event in client.stream(encode_request(request), 60, uuid.uuid4().hex)]


async def told_through(server: str, request: GenerateRequest, chance: random.Random, answer: int) -> list[Event]:
    body = encode_request(request).size
    proxy = CuttingProxy(server, chance, CUTS, body, answer)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        found = await told(f"http://127.0.0.1:{port}", request)
    finally:
        listening.close()
    assert proxy.cuts < CUTS
    return found


@pytest.mark.parametrize("kind", [pytest.param("greedy", marks=pytest.mark.slow), "sampled"])
def test_cut_anywhere_the_answer_is_the_uncut_one(server: ServerProcess, kind: str) -> None:
    chance = random.Random(kind)
    for request in requests_of(kind):
        expected = asyncio.run(told(server.url, request))
        size = sum(len(event.text) + 60 for event in expected) + 600
        before = started(server.url)
        found = asyncio.run(told_through(server.url, request, chance, size))
        assert [event.text for event in found] == [event.text for event in expected]
        assert [event.final is None for event in found] == [event.final is None for event in expected]
        one, two = found[-1].final, expected[-1].final
        assert one is not None
        assert two is not None
        assert (one["generated_ids"], one["text"]) == (two["generated_ids"], two["text"])
        assert started(server.url) == before + 1
