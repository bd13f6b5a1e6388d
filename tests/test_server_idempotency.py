"""Requests with an Idempotency-Key against a real server: generated once, told as often as they are sent."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from server_checkpoint import make_checkpoint
from test_server_http import events_of, metric

from tools.server_process import ServerProcess, running_server

PROMPT = {"input_ids": [1, 2, 3, 1, 2], "max_new_tokens": 24}
LONG = {"input_ids": [1, 2, 3], "max_new_tokens": 400}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    options = {"abandoned_s": 1.0, "keep_answers": 3, "limits": {"max_new_tokens": 400}, "max_queue": 4}
    with running_server(threads=1, model=str(make_checkpoint()), **options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def new_key() -> str:
    return uuid.uuid4().hex


def post(client: httpx.Client, key: str | None, **request: Any) -> httpx.Response:
    return client.post("/v1/generate", json=request, headers={} if key is None else {"Idempotency-Key": key})


def outcome(client: httpx.Client, name: str) -> float:
    return metric(client, f'qwen3vl_edge_idempotent_requests_total{{outcome="{name}"}}')


def wait_until(client: httpx.Client, name: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while metric(client, name) != value:
        assert time.monotonic() < deadline, f"{name} is {metric(client, name)}, not {value}"
        time.sleep(0.02)


def ids_of(response: httpx.Response) -> Any:
    response.raise_for_status()
    if response.headers["content-type"].startswith("text/event-stream"):
        *tokens, final = events_of(iter(response.text.splitlines()))
        assert [event["token_id"] for event in tokens if event["token_id"] is not None] == final["generated_ids"]
        return final["generated_ids"]
    return response.json()["generated_ids"]


@pytest.mark.parametrize("first", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("again", [False, True], ids=["whole", "stream"])
def test_sent_again_is_answered_from_memory(client: httpx.Client, first: bool, again: bool) -> None:
    """Sampled without a seed: a second generation would be another answer."""
    key = new_key()
    sampled = {**PROMPT, "do_sample": True, "temperature": 5.0}
    started = outcome(client, "started")
    expected = ids_of(post(client, key, **sampled, stream=first))
    assert ids_of(post(client, key, **sampled, stream=again)) == expected
    assert outcome(client, "started") == started + 1
    assert ids_of(post(client, new_key(), **sampled)) != expected


def test_who_comes_while_it_runs_joins_it(client: httpx.Client) -> None:
    key, sampled = new_key(), {**LONG, "do_sample": True, "temperature": 5.0}
    started, joined = outcome(client, "started"), outcome(client, "joined")
    with ThreadPoolExecutor(3) as pool:
        answers = list(
            pool.map(lambda stream: ids_of(post(client, key, **sampled, stream=stream)), [True, False, True])
        )
    assert answers[0] == answers[1] == answers[2]
    assert outcome(client, "started") == started + 1
    assert outcome(client, "joined") == joined + 2


def test_another_request_under_the_key_is_refused(client: httpx.Client) -> None:
    key = new_key()
    post(client, key, **PROMPT)
    refused = post(client, key, **{**PROMPT, "max_new_tokens": 23})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb"])
def test_a_bad_key_is_named(client: httpx.Client, key: str) -> None:
    refused = post(client, key, **PROMPT)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")


def leave_after_first_token(client: httpx.Client, key: str) -> None:
    with client.stream(
        "POST", "/v1/generate", json={**LONG, "stream": True}, headers={"Idempotency-Key": key}
    ) as answer:
        next(line for line in answer.iter_lines() if line.startswith("data: "))


def test_who_was_cut_off_and_returns_gets_all_of_it(client: httpx.Client) -> None:
    key, started = new_key(), outcome(client, "started")
    expected = ids_of(post(client, None, **LONG))
    leave_after_first_token(client, key)
    assert ids_of(post(client, key, **LONG, stream=True)) == expected
    assert outcome(client, "started") == started + 1


def test_what_nobody_follows_is_cancelled_and_not_kept(client: httpx.Client) -> None:
    cancelled = 'qwen3vl_edge_generations_total{finish_reason="cancelled"}'
    before, started = metric(client, cancelled), outcome(client, "started")
    key = new_key()
    with ThreadPoolExecutor(4) as pool:  # others keep the model busy, so that it waits longer than its second
        others = [pool.submit(post, client, None, **LONG) for _ in range(4)]
        wait_until(client, "qwen3vl_edge_queue_depth", 3)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/generate", json=LONG, headers={"Idempotency-Key": key}, timeout=0.2)
        assert [other.result().status_code for other in others] == [200] * 4
    wait_until(client, cancelled, before + 1)
    assert ids_of(post(client, key, **LONG))
    assert outcome(client, "started") == started + 2


def test_forgotten_is_generated_anew(client: httpx.Client) -> None:
    key, started = new_key(), outcome(client, "started")
    post(client, key, **PROMPT)
    assert client.delete("/v1/generate", headers={"Idempotency-Key": key}).status_code == 204
    assert client.delete("/v1/generate").status_code == 400
    post(client, key, **PROMPT)
    assert outcome(client, "started") == started + 2


def test_no_more_answers_are_kept_than_may(client: httpx.Client) -> None:
    keys = [new_key() for _ in range(4)]
    for key in keys:
        post(client, key, **PROMPT)
    started = outcome(client, "started")
    post(client, keys[-1], **PROMPT)
    assert outcome(client, "started") == started
    post(client, keys[0], **PROMPT)
    assert outcome(client, "started") == started + 1


def test_a_refusal_is_not_kept(client: httpx.Client) -> None:
    key = new_key()
    assert post(client, key, **{**PROMPT, "max_new_tokens": 401}).status_code == 413
    assert post(client, key, **PROMPT).status_code == 200
