"""Decode steps at the sizes of captured ones, with their tokens read one step later: the same answers as without."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.transformers import captured_steps, scheduler
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.options import ServerOptions
from tests.server.engine.test_batching import finish, make_engine, mixed_requests
from tests.support.engine.called_steps import CalledSteps
from tests.support.server_checkpoint import CASE_NAMES, make_case, oracle
from tests.support.waiting import until

torch.set_num_threads(1)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> CalledSteps:
    """Engines that are made while this is in use run their steps by it."""
    steps = CalledSteps()
    monkeypatch.setattr(scheduler, "captured_steps", lambda loaded, wanted: steps if wanted else None)
    return steps


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_padded_rows_and_columns_change_no_answer(called: CalledSteps, moe: bool) -> None:
    requests = mixed_requests(24, 4, moe)
    plain, padded = make_engine(moe, max_batch=1, capture=False), make_engine(moe, max_batch=7)
    expected = finish([plain.submit(item) for item in requests])
    found = finish([padded.submit(item) for item in requests])
    plain.close()
    padded.close()
    assert found == expected
    rows = {key[2] for key in called.keys}
    assert 4 in rows  # three are padded
    assert rows <= {1, 2, 4, 7}  # powers of two, and the whole batch
    assert {key[3] for key in called.keys} == {256}


def test_greedy_tokens_equal_the_unsplit_model(called: CalledSteps) -> None:
    engine = make_engine(max_batch=5)
    found = finish([engine.submit(make_case(name).request) for name in CASE_NAMES * 2])
    engine.close()
    limit = make_case("one image").request.sampling.max_new_tokens
    assert [list(ids) for ids in found] == [oracle(False).greedy(make_case(name), limit) for name in CASE_NAMES * 2]


def test_eager_attention_gives_the_unsplit_models_tokens(called: CalledSteps) -> None:
    """Its mask is added to the scores, where sdpa's chooses; the rows here are padded."""
    options = ServerOptions(model="", device_map="cpu", attention="eager")
    engine = TransformersEngine(
        load_language_model(oracle(False).checkpoint, options), options=BatchOptions(max_batch=5)
    )
    found = finish([engine.submit(make_case(name).request) for name in CASE_NAMES])
    engine.close()
    limit = make_case("one image").request.sampling.max_new_tokens
    assert [list(ids) for ids in found] == [oracle(False).greedy(make_case(name), limit) for name in CASE_NAMES]


def test_longer_rows_run_in_wider_steps(called: CalledSteps) -> None:
    plain, padded = make_engine(max_batch=1, capture=False), make_engine(max_batch=4)
    request = replace(make_case("one image").request, sampling=Sampling(max_new_tokens=390))
    short = make_case("text only").request
    for engine in (plain, padded):
        engine.loaded = replace(engine.loaded, end_ids=())
    expected = finish([plain.submit(item) for item in (request, short)])
    found = finish([padded.submit(item) for item in (request, short)])
    plain.close()
    padded.close()
    assert found == expected
    assert {key[3] for key in called.keys} == {256, 384, 512}


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e38])
def test_numbers_that_overflow_reach_no_other_request(called: CalledSteps, value: float) -> None:
    """They end in the keys and values of their row, which others use later, masked."""
    engine = make_engine(max_batch=4)
    good = replace(make_case("one image").request, sampling=Sampling(max_new_tokens=30))
    expected = engine.submit(good).future.result(20).generated_ids
    entered = threading.Event()
    media = good.media[0]
    hostile = replace(good, media=(replace(media, embeds=np.full_like(media.embeds, value, np.float32)),))
    left = engine.submit(replace(hostile, sampling=Sampling(max_new_tokens=200)), lambda _: entered.set())
    assert entered.wait(20)
    beside = [engine.submit(good) for _ in range(3)]
    assert finish(beside) == [expected] * 3
    left.cancel()
    assert finish([engine.submit(good) for _ in range(4)]) == [expected] * 4
    engine.close()


def test_cancelled_and_ended_rows_give_no_further_token(called: CalledSteps) -> None:
    """One more step than needed is under way when the host reads that an answer has ended."""
    engine = make_engine(max_batch=3)
    request = replace(make_case("text only").request, sampling=Sampling(max_new_tokens=40))
    expected = engine.submit(request).future.result(20).generated_ids
    end = next(token for index, token in enumerate(expected) if index >= 3 and token not in expected[:index])
    engine.loaded = replace(engine.loaded, end_ids=(end,))
    seen: list[int] = []
    stopped = engine.submit(request, lambda token: seen.append(token.id))
    result = stopped.future.result(20)
    assert list(result.generated_ids) == seen == list(expected[: expected.index(end) + 1])
    assert result.finish_reason == "stop"
    until(lambda: engine.stats().running == 0)
    engine.close()


def test_a_capture_without_memory_is_not_tried_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(captured_steps, "RETRY_STEPS", 3)
    steps, tried = captured_steps.CapturedSteps(torch.device("cuda")), []

    def step() -> torch.Tensor:
        return torch.ones(1)

    def capture(*_: object) -> None:
        tried.append(1)
        raise RuntimeError("CUDA error: out of memory")  # as the driver says it, outside of torch's allocator

    monkeypatch.setattr(steps, "_capture", capture)
    for count in (1, 1, 1, 1, 2, 2):
        assert steps.run((0, 256, 1, 256), step, step).item() == 1
        assert len(tried) == count
    steps.run((1, 256, 1, 256), step, step)  # other memory
    assert len(tried) == 3
    assert steps.failed is None


def requests_of(*names: str, tokens: int = 12) -> list[GenerateRequest]:
    return [replace(make_case(name).request, sampling=Sampling(max_new_tokens=tokens)) for name in names]


def test_steps_are_captured_at_start(called: CalledSteps) -> None:
    engine = make_engine(max_batch=8, capture_sizes=((8, 100), (4, 900), (2, 3000)))
    engine.warm_up()
    assert [key[2:] for key in called.keys[-3:]] == [(2, 3072), (4, 1024), (8, 256)]
    assert len({key[:2] for key in called.keys[-3:]}) == 1  # all on the memory that requests use
    assert engine.submit(requests_of("one image")[0]).future.result(20).generated_ids
    engine.close()


def test_without_memory_for_more_rows_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_batch=4)
    first, second = requests_of("one image", "clip", tokens=30)
    expected = finish([engine.submit(item) for item in (first, second)])
    until(lambda: engine.stats().running == 0)
    batch = engine._scheduler.batch
    reserve, refused = batch.slab.reserve, []

    def short(rows: int, columns: int, lengths: list[int]) -> None:
        if rows > 1:
            refused.append(rows)
            raise torch.OutOfMemoryError("none left")
        reserve(rows, columns, lengths)

    monkeypatch.setattr(batch.slab, "reserve", short)
    entered = threading.Event()
    one = engine.submit(first, lambda _: entered.set())
    entered.wait(20)
    other = engine.submit(second)
    assert finish([one, other]) == expected
    assert len(refused) in (0, 1)  # asked once, not at every step
    engine.close()
