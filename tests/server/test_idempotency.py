"""The same request under one Idempotency-Key: generated once by a real server, answered as often as it is sent."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter

from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import GenerateResult, Timings, Token
from qwen3vl_edge.server.generation.keyed import KeyedGenerations
from qwen3vl_edge.server.generation.live_generation import LiveGeneration, TokenLog
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.tools.server_process import ServerProcess, running_server
from tests.support.http_api.generate import events_of, key_headers, post
from tests.support.http_api.metrics import metric
from tests.support.instructions import instructions
from tests.support.server_checkpoint import make_case, make_checkpoint
from tests.support.waiting import until
from tests.support.wire_bodies import body_of

KEPT, ABANDONED_S = 3, 1.0
SHORT = make_case("one image").request
# Sampled without a seed: two generations would hardly agree, so equal answers were generated once.
UNSEEDED = replace(SHORT, sampling=Sampling(max_new_tokens=40, do_sample=True, temperature=2.0))
LONG = replace(SHORT, sampling=Sampling(max_new_tokens=400, do_sample=True, temperature=2.0, seed=5))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    options = {"max_new_tokens": 400, "keep_answers": KEPT, "abandoned_s": ABANDONED_S, "keep_answers_s": 60}
    with running_server(threads=1, model=str(make_checkpoint()), **options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def new_key() -> str:
    return uuid.uuid4().hex


def answer(client: httpx.Client, request: GenerateRequest, key: str, stream: bool) -> dict[str, Any]:
    """The answer object; of a stream, after its steps were found to join to it."""
    response = post(client, replace(request, stream=stream), key_headers(key))
    assert response.status_code == 200, response.text
    if not stream:
        whole: dict[str, Any] = response.json()
        return whole
    *steps, final = events_of(response.text.split("\n"))
    assert [step["token_id"] for step in steps if step["token_id"] is not None] == final["generated_ids"]
    assert "".join(step["text"] for step in steps) == final["text"]
    return final


def generations(client: httpx.Client, reason: str = "") -> float:
    text = client.get("/metrics").text
    found = re.findall(r'^qwen3vl_edge_generations_total{finish_reason="(\w+)"} (\S+)$', text, re.MULTILINE)
    return sum(float(count) for name, count in found if reason in ("", name))


def outcomes(client: httpx.Client, outcome: str) -> float:
    return metric(str(client.base_url), f'qwen3vl_edge_idempotent_requests_total{{outcome="{outcome}"}}')


def begin(client: httpx.Client, request: GenerateRequest, key: str) -> None:
    """Read the first tokens of a stream and leave."""
    body = body_of(replace(request, stream=True))
    with client.stream("POST", "/v1/generate", content=body, headers=key_headers(key)) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        for _ in range(3):
            next(lines)


@pytest.mark.parametrize("second", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("first", [False, True], ids=["whole", "streamed"])
def test_sent_again_it_is_replayed(client: httpx.Client, first: bool, second: bool) -> None:
    key, before, replayed = new_key(), generations(client), outcomes(client, "replayed")
    one = answer(client, UNSEEDED, key, first)
    two = answer(client, UNSEEDED, key, second)
    assert two == one
    assert generations(client) == before + 1
    assert outcomes(client, "replayed") == replayed + 1


def test_sent_while_it_runs_all_join_one_generation(client: httpx.Client) -> None:
    key, before = new_key(), generations(client)
    request = replace(LONG, sampling=replace(LONG.sampling, seed=None))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda stream: answer(client, request, key, stream), [True, False] * 3))
    assert all(found == answers[0] for found in answers)
    assert generations(client) == before + 1


def test_who_asks_under_another_id_gets_the_answer_under_it(client: httpx.Client) -> None:
    key = new_key()
    one = answer(client, replace(UNSEEDED, request_id="one"), key, False)
    two = answer(client, replace(UNSEEDED, request_id="two"), key, True)
    assert (one["request_id"], two["request_id"]) == ("one", "two")
    assert one["generated_ids"] == two["generated_ids"]


@pytest.mark.parametrize("what", ["ids", "embeddings", "sampling"])
def test_the_same_key_with_another_request_is_refused(client: httpx.Client, what: str) -> None:
    embeds = SHORT.media[0].embeds.copy()
    embeds[0, 0] += 1
    other = {
        "ids": replace(SHORT, input_ids=np.append(SHORT.input_ids, SHORT.input_ids[0])),
        "embeddings": replace(SHORT, media=(replace(SHORT.media[0], embeds=embeds), *SHORT.media[1:])),
        "sampling": replace(SHORT, sampling=replace(SHORT.sampling, max_new_tokens=3)),
    }[what]
    key = new_key()
    expected = answer(client, SHORT, key, False)
    before = generations(client)
    refused = post(client, other, key_headers(key))
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert refused.json()["error"]["param"] == HEADER
    assert generations(client) == before
    assert answer(client, SHORT, key, False) == expected


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb", "caf\xe9"], ids=["empty", "long", "control", "not ASCII"])
def test_a_bad_key_is_refused(client: httpx.Client, key: str) -> None:
    raw = [(b"Content-Type", CONTENT_TYPE.encode()), (HEADER.encode(), key.encode("latin-1"))]
    refused = client.post("/v1/generate", content=body_of(SHORT), headers=raw)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "bad_idempotency_key"


def test_two_keys_or_none_to_forget_are_refused(client: httpx.Client) -> None:
    twice = [("Content-Type", CONTENT_TYPE), (HEADER, "one"), (HEADER, "two")]
    assert client.post("/v1/generate", content=body_of(SHORT), headers=twice).status_code == 400
    assert client.delete("/v1/generate").status_code == 400


def test_delete_forgets_an_answer(client: httpx.Client) -> None:
    key = new_key()
    answer(client, UNSEEDED, key, False)
    before = generations(client)
    assert client.delete("/v1/generate", headers={HEADER: key}).status_code == 204
    assert client.delete("/v1/generate", headers={HEADER: new_key()}).status_code == 204  # unknown: nothing to do
    answer(client, UNSEEDED, key, False)
    assert generations(client) == before + 1


def test_delete_cancels_what_runs_and_it_is_not_kept(client: httpx.Client) -> None:
    key, cancelled = new_key(), generations(client, "cancelled")
    begin(client, LONG, key)
    client.delete("/v1/generate", headers={HEADER: key})
    until(lambda: generations(client, "cancelled") == cancelled + 1)
    started = outcomes(client, "started")
    whole = answer(client, LONG, key, False)
    assert whole["finish_reason"] != "cancelled"
    assert outcomes(client, "started") == started + 1


def test_a_reader_that_leaves_finds_the_generation_again(client: httpx.Client) -> None:
    key, before, cancelled = new_key(), generations(client), generations(client, "cancelled")
    begin(client, LONG, key)
    found = answer(client, LONG, key, True)
    assert generations(client) == before + 1
    assert generations(client, "cancelled") == cancelled
    assert found["generated_ids"] == answer(client, LONG, new_key(), False)["generated_ids"]


def test_one_that_nobody_comes_back_to_is_cancelled(client: httpx.Client) -> None:
    """Four batches wait in line: on a fast machine too the last has not ended by itself before `abandoned_s`."""
    cancelled, keys = generations(client, "cancelled"), [new_key() for _ in range(32)]
    with ThreadPoolExecutor(len(keys)) as pool:
        url = f"{client.base_url}/v1/generate"
        gone = [
            pool.submit(httpx.post, url, content=body_of(LONG), headers=key_headers(key), timeout=0.5) for key in keys
        ]
        assert any(isinstance(item.exception(), httpx.TimeoutException) for item in gone)
    until(lambda: generations(client, "cancelled") > cancelled)
    until(lambda: metric(str(client.base_url), "qwen3vl_edge_queue_depth") == 0)
    assert answer(client, LONG, keys[-1], False)["finish_reason"] != "cancelled"


def test_the_oldest_answers_go_first(client: httpx.Client) -> None:
    keys = [new_key() for _ in range(KEPT + 1)]
    for key in keys:
        answer(client, SHORT, key, False)
    started, replayed = outcomes(client, "started"), outcomes(client, "replayed")
    for key in keys[1:]:
        answer(client, SHORT, key, False)
    assert outcomes(client, "replayed") == replayed + KEPT
    answer(client, SHORT, keys[0], False)
    assert outcomes(client, "started") == started + 1


def test_without_a_key_each_is_generated(client: httpx.Client) -> None:
    before = generations(client)
    for _ in range(2):
        content = {"Content-Type": CONTENT_TYPE}
        assert client.post("/v1/generate", content=body_of(SHORT), headers=content).status_code == 200
    assert generations(client) == before + 2


class Kept:
    """Kept answers of a server that has answered `count` requests; their keys are the numbers from 0."""

    def __init__(self, count: int, **options: Any) -> None:
        self.now = 0.0
        outcomes = Counter("outcomes", "", ["outcome"], registry=CollectorRegistry())
        settings = ServerOptions(**{"model": "m", "keep_answers": 10**6, "keep_answers_mib": 2**20, **options})
        self.keyed = KeyedGenerations(settings, outcomes, lambda: self.now)
        for number in range(count):
            self.ended(str(number))

    def ended(self, key: str, likely: int = 0) -> None:
        log, future = TokenLog(), Future[GenerateResult]()
        log._tokens.extend(Token(7, -0.5, ((7, -0.5),) * likely) for _ in range(5))
        self.keyed.attach(key, b"digest", lambda: LiveGeneration(future, log, lambda: None))
        future.set_result(GenerateResult((7,) * 5, "five", "length", 3, 0, Timings(0, 0, 0)))

    @property
    def held(self) -> int:
        return len(self.keyed._answers)


async def settled() -> None:
    """The loop has run all that was due."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_request_costs_the_same_however_many_answers_are_kept() -> None:
    async def cost(count: int) -> int:
        kept = Kept(count)
        await settled()
        assert kept.held == count
        return instructions(lambda: (kept.keyed.contains("none"), kept.keyed.contains("0")))

    assert asyncio.run(cost(5_000)) == asyncio.run(cost(5))


def test_answers_that_expire_at_once_delay_no_request() -> None:
    async def expire() -> None:
        kept, one = Kept(5_000), Kept(1)
        await settled()
        kept.now = one.now = 601.0
        assert instructions(lambda: kept.keyed.contains("4999")) < 100 * instructions(lambda: one.keyed.contains("0"))
        assert not kept.keyed.contains("4998"), "it has expired and was not evicted yet"
        assert kept.held > 4_000
        while kept.held:
            await asyncio.sleep(0)
        assert kept.keyed._bytes == 0

    asyncio.run(expire())


def test_the_sums_are_right_whatever_ends_an_answer() -> None:
    async def change() -> None:
        kept = Kept(10)
        await settled()
        each = kept.keyed._bytes // 10
        kept.keyed.forget("3")
        assert (kept.held, kept.keyed._bytes) == (9, 9 * each)
        kept.now = 599.0
        kept.ended("3")
        await settled()
        kept.now = 601.0
        assert [kept.keyed.contains(str(number)) for number in range(10)] == [number == 3 for number in range(10)]
        assert (kept.held, kept.keyed._bytes) == (1, each)
        kept.ended("logprobs", likely=20)
        await settled()
        assert kept.keyed._bytes >= 2 * each + 5 * 20 * 100, "the likeliest tokens are held too"

    asyncio.run(change())


def test_answers_beyond_the_limits_go_whatever_their_number() -> None:
    async def fill() -> None:
        few, small = Kept(1_000, keep_answers=100), Kept(1_000, keep_answers_mib=1)
        await settled()
        while few.held > 100 or small.keyed._bytes > 2**20:
            await asyncio.sleep(0)
        assert few.keyed.contains("999")
        assert not few.keyed.contains("899")
        assert small.keyed.contains("999")

    asyncio.run(fill())
