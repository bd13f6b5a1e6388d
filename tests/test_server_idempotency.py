"""Requests with an Idempotency-Key against a real server: generated once, answered as often as they are sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
from metric_values import metric
from server_checkpoint import make_case, make_checkpoint
from wire_bodies import body_of

from contract.request import GenerateRequest, Sampling
from contract.wire import CONTENT_TYPE
from tools.server_process import running_server

LIMITS = {"max_prompt_tokens": 256, "max_new_tokens": 400}
GENERATIONS = "qwen3vl_edge_generations_total"
CANCELLED = 'qwen3vl_edge_generations_total{finish_reason="cancelled"}'


def outcome(url: str, name: str) -> float:
    return metric(url, f'qwen3vl_edge_idempotent_requests_total{{outcome="{name}"}}')


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server(
        threads=1, model=str(make_checkpoint()), limits=LIMITS, max_queue=2, abandoned_s=1.0, keep_answers=3
    ) as running:
        yield running.url


def sampled(tokens: int, stream: bool = False, name: str = "one image") -> GenerateRequest:
    """Without a seed, so a second generation would be another answer."""
    sampling = Sampling(max_new_tokens=tokens, do_sample=True, temperature=2.0)
    return replace(make_case(name).request, sampling=sampling, stream=stream)


def send(url: str, request: GenerateRequest, key: str) -> httpx.Response:
    headers = {"Content-Type": CONTENT_TYPE, "Idempotency-Key": key}
    return httpx.post(f"{url}/v1/generate", content=body_of(request), headers=headers, timeout=60)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def ids_of(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("application/json"):
        return list(response.json()["generated_ids"])
    *steps, last = events_of(response)
    assert [step["token_id"] for step in steps if step["token_id"] is not None] == last["generated_ids"]
    assert "".join(step["text"] for step in steps) == last["text"]
    return list(last["generated_ids"])


def wait_until(what: Any) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [True, False])
def test_sent_again_it_is_the_same_answer_streamed_or_whole(url: str, first: bool, then: bool) -> None:
    before, replayed, key = metric(url, GENERATIONS), outcome(url, "replayed"), f"again {first} {then}"
    answers = [ids_of(send(url, sampled(20, stream), key)) for stream in (first, then, first)]
    assert answers[1:] == answers[:1] * 2
    assert metric(url, GENERATIONS) == before + 1
    assert outcome(url, "replayed") == replayed + 2


def test_the_request_id_is_that_of_the_one_who_asks(url: str) -> None:
    names = [send(url, replace(sampled(4), request_id=name), "named").json()["request_id"] for name in ("a", "b")]
    assert names == ["a", "b"]


def test_many_at_once_join_one_generation_even_where_the_queue_is_full(url: str) -> None:
    before, joined = metric(url, GENERATIONS), outcome(url, "joined")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: ids_of(send(url, sampled(200, index % 2 == 0), "many")), range(8)))
    assert len({tuple(answer) for answer in answers}) == 1
    assert metric(url, GENERATIONS) == before + 1
    assert outcome(url, "joined") > joined


@pytest.mark.parametrize("other", [sampled(21), sampled(20, name="text only")], ids=["sampling", "prompt"])
def test_the_same_key_with_another_request_is_refused(url: str, other: GenerateRequest) -> None:
    assert send(url, sampled(20), "mine").status_code == 200
    refused = send(url, other, "mine")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert refused.json()["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb", "\xe9"])
def test_bad_keys_are_named(url: str, key: str) -> None:
    headers = [(b"Content-Type", CONTENT_TYPE.encode()), (b"Idempotency-Key", key.encode("latin-1"))]
    refused = httpx.post(f"{url}/v1/generate", content=body_of(sampled(4)), headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Idempotency-Key"


def open_and_leave(url: str, request: GenerateRequest, key: str) -> list[int]:
    """The tokens that came before the connection was closed."""
    headers = {"Content-Type": CONTENT_TYPE, "Idempotency-Key": key}
    found = []
    with httpx.stream("POST", f"{url}/v1/generate", content=body_of(request), headers=headers) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: "))["token_id"])
                if len(found) == 3:
                    break
    return found


def test_a_generation_goes_on_for_a_reader_that_lost_it(url: str) -> None:
    before = metric(url, GENERATIONS)
    request = sampled(300, stream=True)
    seen = open_and_leave(url, request, "lost")
    answer = ids_of(send(url, request, "lost"))
    assert answer[:3] == seen
    assert metric(url, GENERATIONS) == before + 1


def test_a_generation_that_nobody_comes_back_for_ends(url: str) -> None:
    before, tokens = metric(url, CANCELLED), metric(url, 'qwen3vl_edge_tokens_total{kind="generated"}')
    # Two more wait behind it, so that it is still there when its time is up.
    with ThreadPoolExecutor(2) as pool:
        open_and_leave(url, sampled(400, stream=True), "left")
        behind = [pool.submit(open_and_leave, url, sampled(400, stream=True), f"left {index}") for index in range(2)]
        for one in behind:
            one.result()
    wait_until(lambda: metric(url, CANCELLED) > before)
    assert metric(url, 'qwen3vl_edge_tokens_total{kind="generated"}') - tokens < 1200
    assert len(ids_of(send(url, sampled(5), "left"))) <= 5  # not kept: another request may have the key


def test_forgotten_is_cancelled_at_once_and_not_kept(url: str) -> None:
    before = metric(url, CANCELLED)
    open_and_leave(url, sampled(400, stream=True), "done with")
    assert httpx.delete(f"{url}/v1/generate", headers={"Idempotency-Key": "done with"}).status_code == 204
    wait_until(lambda: metric(url, CANCELLED) == before + 1)
    assert httpx.delete(f"{url}/v1/generate", headers={"Idempotency-Key": "never seen"}).status_code == 204
    assert httpx.delete(f"{url}/v1/generate").status_code == 400


def test_a_reader_of_a_cancelled_generation_is_told_and_gets_no_part_for_an_answer(url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        joined = outcome(url, "started")
        answer = pool.submit(send, url, sampled(400, stream=True), "cancelled")
        wait_until(lambda: outcome(url, "started") > joined)
        httpx.delete(f"{url}/v1/generate", headers={"Idempotency-Key": "cancelled"})
        assert events_of(answer.result())[-1]["error"]["code"] == "server_unavailable"


def test_the_oldest_answers_go_first(url: str) -> None:
    before = metric(url, GENERATIONS)
    for key in ("1", "2", "3", "4"):
        ids_of(send(url, sampled(3), key))
    for key in ("2", "3", "4"):
        ids_of(send(url, sampled(3), key))
    assert metric(url, GENERATIONS) == before + 4
    ids_of(send(url, sampled(3), "1"))
    assert metric(url, GENERATIONS) == before + 5
