"""Connections that break within an answer: it is taken up again, and no token is lost, doubled or generated twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from cutting_proxy import CuttingProxy
from server_checkpoint import make_checkpoint
from test_server_http import metric

from contract.errors import ServerUnavailableError
from contract.request import GenerateRequest, Sampling
from contract.wire import encode_request
from edge_runtime.async_client import AsyncClient
from tools.server_process import ServerProcess, running_server

ANSWER_BYTES = 4000  # of a streamed answer of these, headers included
STARTED = 'qwen3vl_edge_idempotent_requests_total{outcome="started"}'


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(threads=1, model=str(make_checkpoint()), max_queue=32) as running:
        yield running


def request(index: int, sample: bool, tokens: int = 40) -> GenerateRequest:
    sampling = Sampling(max_new_tokens=tokens, do_sample=sample, temperature=5.0, seed=None)
    ids = np.array([1, 2, 3] * (index % 30 + 1), dtype=np.int64)
    return GenerateRequest(None, ids, sampling=sampling, stream=True, request_id=f"cut-{sample}-{index}")


async def ask(client: AsyncClient, wanted: GenerateRequest) -> tuple[list[str], dict[str, Any]]:
    """The pieces of text as they came, and the last event."""
    pieces: list[str] = []
    async for event in client.stream(encode_request(wanted), 60, wanted.request_id):
        if event.final is not None:
            return pieces, event.final
        pieces.append(event.text)
    raise AssertionError("no last event")


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_every_answer_is_whole_and_was_made_once(server: ServerProcess, sample: bool) -> None:
    """Ten answers, each cut three times at random places; sampled without a seed, so a second one would differ."""
    port = int(server.url.rsplit(":", 1)[1])

    async def all_of_them() -> int:
        cuts = 0
        for index in range(10):
            with CuttingProxy(port, 3, ANSWER_BYTES, seed=index) as proxy:
                async with AsyncClient(f"http://127.0.0.1:{proxy.port}") as client:
                    pieces, final = await ask(client, request(index, sample))
                assert "".join(pieces) == final["text"]
                assert 0 <= len(pieces) - len(final["generated_ids"]) <= 1  # one more where it ends within a character
                cuts += proxy.cuts
        return cuts

    with httpx.Client(base_url=server.url) as scrape:
        before = metric(scrape, STARTED)
        cuts = asyncio.run(all_of_them())
        assert metric(scrape, STARTED) == before + 10
    assert cuts >= 20


def test_a_server_that_lost_the_answer_is_not_believed(server: ServerProcess) -> None:
    """After a restart a sampled answer is another one: what was shown must not be continued with it."""
    wanted = request(90, True, tokens=400)

    async def forgotten_under_way() -> None:
        async with AsyncClient(server.url) as client:
            events = client.stream(encode_request(wanted), 60, wanted.request_id)
            for _ in range(4):
                await anext(events)
            client.forget(wanted.request_id)  # the server cancels it, as if it had restarted
            async for _ in events:
                pass

    with pytest.raises(ServerUnavailableError, match="began another"):
        asyncio.run(forgotten_under_way())
