"""Requests that generate together: each gets the tokens that it gets alone, whatever joins and leaves beside it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen3vl_edge.contract.errors import QueueFullError, ServerUnavailableError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import Generation, Token
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.errors import GenerationTimeoutError, OutOfMemoryError
from qwen3vl_edge.server.options import ServerOptions
from tests.support.engine.drawn_sampling import sampling_of
from tests.support.server_checkpoint import CASE_NAMES, make_case, oracle
from tests.support.waiting import until

torch.set_num_threads(1)
LENGTHS = (1, 3, 7, 20, 33)


def make_engine(moe: bool = False, **options: Any) -> TransformersEngine:
    loaded = load_language_model(oracle(moe).checkpoint, ServerOptions(model="", device_map="cpu"))
    return TransformersEngine(loaded, options=BatchOptions(**{"max_queue": 256, **options}))


@pytest.fixture(scope="module", params=[False, True], ids=["dense", "moe"])
def moe(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    engine = make_engine()
    yield engine
    engine.close()


def mixed_requests(count: int, seed: int, moe: bool) -> list[GenerateRequest]:
    """Of all cases and lengths; a third are sampled, with seeds, a few with a repetition penalty."""
    rng = random.Random(seed)
    names = ["one image", "image and clip", "text only"] if moe else list(CASE_NAMES)
    found = []
    for index in range(count):
        sampling = sampling_of(index, rng.choice(LENGTHS))
        found.append(replace(make_case(rng.choice(names), moe).request, sampling=sampling))
    return found


def finish(generations: list[Generation]) -> list[tuple[int, ...]]:
    return [generation.future.result(60).generated_ids for generation in generations]


def test_tokens_in_a_batch_equal_those_alone(moe: bool) -> None:
    requests = mixed_requests(60, 3, moe)
    alone, together = make_engine(moe, max_batch=1), make_engine(moe, max_batch=7)
    expected = finish([alone.submit(alone.prepare(item)) for item in requests])
    found = finish([together.submit(together.prepare(item)) for item in requests])
    stats = together.stats()
    alone.close()
    together.close()
    assert found == expected
    assert stats.step_rows / stats.steps > 3  # they did share steps
    assert alone.stats().step_rows == alone.stats().steps


def test_greedy_tokens_in_a_batch_equal_the_unsplit_model(engine: TransformersEngine) -> None:
    names = [*CASE_NAMES] * 3
    found = finish([engine.submit(engine.prepare(make_case(name).request)) for name in names])
    limit = make_case("one image").request.sampling.max_new_tokens
    assert [list(ids) for ids in found] == [oracle(False).greedy(make_case(name), limit) for name in names]


def test_who_leaves_changes_nobody_elses_answer(engine: TransformersEngine) -> None:
    names = [*CASE_NAMES] * 2
    sampling = Sampling(max_new_tokens=40)
    expected = finish([engine.submit(replace(make_case(name).request, sampling=sampling)) for name in names])
    generations: list[Generation] = []
    for index, name in enumerate(names):
        leaving = threading.Event()
        longer = replace(make_case(name).request, sampling=Sampling(max_new_tokens=300))
        left = engine.submit(longer, lambda _, leaving=leaving: leaving.set())
        generations.append(engine.submit(replace(make_case(name).request, sampling=sampling)))
        if index % 2:
            leaving.wait(10)
        left.cancel()
    assert finish(generations) == expected


def test_rows_over_the_token_limit_wait(moe: bool) -> None:
    request = replace(make_case("text only", moe).request, sampling=Sampling(max_new_tokens=20))
    room = 2 * (request.input_ids.size + 20)
    engine = make_engine(moe, max_batch=8, max_batch_tokens=room)
    answers = finish([engine.submit(request) for _ in range(6)])
    stats = engine.stats()
    longer = replace(request, sampling=Sampling(max_new_tokens=60))  # more than the limit, but alone
    assert len(engine.submit(longer).future.result(20).generated_ids) > 20
    engine.close()
    assert len(set(answers)) == 1
    assert 1 < stats.step_rows / stats.steps <= 2


def test_clients_take_turns() -> None:
    engine = make_engine(max_batch=1)
    order: list[str] = []
    go_on = threading.Event()
    request = replace(make_case("text only").request, sampling=Sampling(max_new_tokens=2))
    held = engine.submit(request, lambda _: go_on.wait(10) and None)
    generations = []
    for client in ("many", "many", "many", "many", "few", "few", "one"):
        generation = engine.submit(request, client=client)
        generation.future.add_done_callback(lambda _, client=client: order.append(client))
        generations.append(generation)
    go_on.set()
    finish([held, *generations])
    engine.close()
    assert order == ["many", "few", "one", "many", "few", "many", "many"]


def test_one_client_cannot_fill_the_queue() -> None:
    engine = make_engine(max_batch=1, max_queue=10, max_queue_per_client=2)
    entered, go_on = threading.Event(), threading.Event()
    request = make_case("text only").request

    def hold(_: Token) -> None:
        entered.set()
        go_on.wait(10)

    held = engine.submit(request, hold)
    assert entered.wait(10)
    generations = [engine.submit(request, client="a"), engine.submit(request, client="a")]
    with pytest.raises(QueueFullError) as caught:
        engine.submit(request, client="a")
    assert "2 waiting" in str(caught.value)
    engine.check_room("b")
    generations.append(engine.submit(request, client="b"))
    go_on.set()
    finish([held, *generations])
    engine.close()


def fail_once(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, when: int, error: BaseException) -> None:
    """The model's call number `when` from now on fails."""
    forward, calls = engine.loaded.model.forward, iter(range(1, 10_000))

    def call(*args: Any, **inputs: Any) -> Any:
        if next(calls) == when:
            raise error
        return forward(*args, **inputs)

    monkeypatch.setattr(engine.loaded.model, "forward", call)


def test_no_memory_in_a_step_fails_that_batch_and_the_engine_goes_on(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(make_case("one image").request, sampling=Sampling(max_new_tokens=30))
    expected = engine.submit(request).future.result(20).generated_ids
    fail_once(engine, monkeypatch, 12, torch.OutOfMemoryError("none left"))
    generations = [engine.submit(request) for _ in range(3)]
    errors = [generation.future.exception(20) for generation in generations]
    assert all(isinstance(error, OutOfMemoryError) and error.status == 503 for error in errors)
    assert engine.submit(request).future.result(20).generated_ids == expected
    until(lambda: engine.stats().running == 0)


def test_no_memory_for_a_prompt_fails_that_prompt_alone(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(make_case("one image").request, sampling=Sampling(max_new_tokens=30))
    expected = engine.submit(request).future.result(20).generated_ids
    fail_once(engine, monkeypatch, 1, MemoryError())
    assert isinstance(engine.submit(request).future.exception(20), OutOfMemoryError)
    assert engine.submit(request).future.result(20).generated_ids == expected


def test_no_memory_for_prompts_together_computes_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_batch=6)
    names = ["one image", "image and clip", "text only"]
    expected = finish([engine.submit(make_case(name).request) for name in names])
    held, go_on, sizes = threading.Event(), threading.Event(), []
    forward = engine.loaded.model.forward

    def call(*args: Any, **inputs: Any) -> Any:
        sizes.append(tuple(inputs["input_ids"].shape))
        if inputs["input_ids"].shape[0] > 1 and inputs["input_ids"].shape[1] > 1:
            raise torch.OutOfMemoryError("none left")
        return forward(*args, **inputs)

    monkeypatch.setattr(engine.loaded.model, "forward", call)

    def hold(_: Token) -> None:
        held.set()
        go_on.wait(10)

    first = engine.submit(replace(make_case("text only").request, sampling=Sampling(max_new_tokens=1)), hold)
    assert held.wait(10)
    same = [engine.submit(make_case("one image").request) for _ in range(3)]
    go_on.set()
    finish([first])
    assert finish(same) == [expected[0]] * 3
    assert any(rows == 3 and tokens > 1 for rows, tokens in sizes)
    engine.close()


def test_a_generation_past_its_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_seconds=0.4)
    request = replace(make_case("text only").request, sampling=Sampling(max_new_tokens=300))
    slow = engine.submit(request, lambda _: time.sleep(0.05))
    with pytest.raises(GenerationTimeoutError) as caught:
        slow.future.result(20)
    assert caught.value.status == 504
    assert "0.4 s" in str(caught.value)
    short = replace(request, sampling=Sampling(max_new_tokens=1))
    assert engine.generate(short).finish_reason in ("stop", "length")
    engine.close()


def test_a_step_that_never_ends_is_told_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_seconds=0.4, stall_s=0.6)
    go_on = threading.Event()
    forward = engine.loaded.model.forward

    def hang(*args: Any, **inputs: Any) -> Any:
        go_on.wait(30)
        return forward(*args, **inputs)

    monkeypatch.setattr(engine.loaded.model, "forward", hang)
    request = make_case("text only").request
    stuck = engine.submit(request)
    until(lambda: engine.stats().running == 1)
    waiting = engine.submit(request)
    assert isinstance(stuck.future.exception(10), GenerationTimeoutError)
    assert isinstance(waiting.future.exception(10), ServerUnavailableError)
    with pytest.raises(ServerUnavailableError, match="stuck"):
        engine.check_room()
    go_on.set()
    until(lambda: not engine.stats().stalled_s)
    short = replace(request, sampling=Sampling(max_new_tokens=1))
    assert engine.submit(short).future.result(20).generated_ids  # it came back after all
    engine.close()


def test_probabilities_are_those_before_temperature(engine: TransformersEngine) -> None:
    tokens: list[Token] = []
    sampling = Sampling(max_new_tokens=5, do_sample=True, temperature=3.0, seed=1)
    request = replace(make_case("one image").request, sampling=sampling, logprobs=4)
    engine.submit(request, tokens.append).future.result(20)
    greedy: list[Token] = []
    engine.submit(replace(request, sampling=Sampling(max_new_tokens=5)), greedy.append).future.result(20)
    assert all(len(token.top) == 4 and token.logprob is not None for token in [*tokens, *greedy])
    assert all(token.top[0] == (token.id, token.logprob) for token in greedy)
    assert tokens[0].top == greedy[0].top  # the same place, however it is sampled
    logits = oracle(False).logits(make_case("one image"))
    best = logits.log_softmax(-1).topk(4)
    assert [token for token, _ in greedy[0].top] == best.indices.tolist()
    assert [value for _, value in greedy[0].top] == pytest.approx(best.values.tolist(), abs=1e-4)
