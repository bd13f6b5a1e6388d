"""The engine against the unsplit model: the same tokens, one request after another, queued and cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from qwen3vl_edge.contract.errors import ContractError, LimitError, QueueFullError, ServerUnavailableError, WireError
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.errors import OutOfMemoryError
from qwen3vl_edge.server.options import ServerOptions
from tests.support.engine.one_row_sampler import AnswerPenalties, LogitBias
from tests.support.server_checkpoint import CASE_NAMES, MAX_POSITIONS, make_case, oracle

TOKENS = 12
torch.set_num_threads(1)


def make_engine(moe: bool = False, **options: Any) -> TransformersEngine:
    loaded = load_language_model(oracle(moe).checkpoint, ServerOptions(model="", device_map="cpu"))
    return TransformersEngine(loaded, options=BatchOptions(**{"max_queue": 32, **options}))


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    engine = make_engine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def moe_engine() -> Iterator[TransformersEngine]:
    engine = make_engine(moe=True)
    yield engine
    engine.close()


def through_the_wire(request: GenerateRequest) -> GenerateRequest:
    return decode_request(bytearray(bytes(encode_request(request))))


def expected(name: str, moe: bool = False) -> list[int]:
    return oracle(moe).greedy(make_case(name, moe), TOKENS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CASE_NAMES)
def test_greedy_tokens_equal_the_unsplit_model(engine: TransformersEngine, name: str, dtype: str) -> None:
    result = engine.generate(through_the_wire(make_case(name, dtype=dtype).request))
    assert list(result.generated_ids) == expected(name)
    assert result.prompt_tokens == make_case(name).request.input_ids.size
    assert result.visual_tokens == sum(item.embeds.shape[0] for item in make_case(name).request.media)
    assert result.finish_reason in ("stop", "length")


@pytest.mark.parametrize("name", ["one image", "image and clip", "text only"])
def test_greedy_tokens_equal_the_unsplit_moe_model(moe_engine: TransformersEngine, name: str) -> None:
    result = moe_engine.generate(through_the_wire(make_case(name, moe=True).request))
    assert list(result.generated_ids) == expected(name, moe=True)


def test_no_state_leaks_from_one_request_to_the_next(engine: TransformersEngine) -> None:
    order = ["clip", "text only", "one image", "text only", "text only", "two images", "clip", "one image"]
    answers = [list(engine.generate(make_case(name).request).generated_ids) for name in order]
    assert answers == [expected(name) for name in order]


def test_concurrent_requests_each_get_their_own_answer(engine: TransformersEngine) -> None:
    names = [*CASE_NAMES, *CASE_NAMES]
    with ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(lambda name: engine.generate(make_case(name).request), names))
    assert [list(result.generated_ids) for result in results] == [expected(name) for name in names]


def test_tokens_are_handed_over_as_they_come(engine: TransformersEngine) -> None:
    seen: list[Token] = []
    result = engine.generate(make_case("one image").request, seen.append)
    assert tuple(token.id for token in seen) == result.generated_ids
    assert min(result.timings.queue_s, result.timings.prefill_s, result.timings.decode_s) >= 0


@pytest.mark.parametrize("where", ["left", "right"])
def test_padding_does_not_change_the_answer(engine: TransformersEngine, where: str) -> None:
    request = make_case("one image").request
    pads = (5, 0) if where == "left" else (0, 5)
    padded = replace(
        request,
        input_ids=np.pad(request.input_ids, pads),
        attention_mask=np.pad(np.ones_like(request.input_ids), pads),
    )
    result = engine.generate(padded)
    assert list(result.generated_ids) == expected("one image")
    assert result.prompt_tokens == request.input_ids.size


def test_pictures_apart_only_by_masked_tokens_are_refused(engine: TransformersEngine) -> None:
    case = make_case("two images")
    mask = np.ones_like(case.request.input_ids)
    image_id = engine.loaded.shape.image_token_id
    places = np.flatnonzero(case.request.input_ids == image_id)
    mask[places[5] + 1 : places[6]] = 0
    with pytest.raises(WireError) as caught:
        engine.generate(replace(case.request, attention_mask=mask))
    assert caught.value.field == "input_ids"


def test_stop_at_the_end_token(engine: TransformersEngine) -> None:
    third = expected("one image")[2]
    stopping = make_engine()
    object.__setattr__(stopping.loaded, "end_ids", (third,))
    result = stopping.generate(make_case("one image").request)
    stopping.close()
    assert result.finish_reason == "stop"
    assert list(result.generated_ids) == expected("one image")[:3]


def test_same_seed_same_answer(engine: TransformersEngine) -> None:
    def sample(seed: int | None) -> tuple[int, ...]:
        sampling = Sampling(max_new_tokens=TOKENS, do_sample=True, temperature=1.5, top_p=0.95, seed=seed)
        return engine.generate(replace(make_case("one image").request, sampling=sampling)).generated_ids

    first = sample(5)
    unseeded = sample(None)
    assert sample(5) == first
    assert sample(6) != first
    assert sample(None) != unseeded  # the seed before it is not what it starts from


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 2.0), (-1.0, 0.7), (-2.0, -2.0)])
def test_penalties_are_vllms_formula(engine: TransformersEngine, presence: float, frequency: float) -> None:
    case = make_case("one image")
    plain = expected("one image")
    sampling = Sampling(
        max_new_tokens=40,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=((plain[0], -1.5), (plain[1], 3.0), (11, 2.5)),
    )
    processors = [LogitBias(sampling.logit_bias), AnswerPenalties(sampling, case.request.input_ids.size)]
    found = engine.generate(replace(case.request, sampling=sampling)).generated_ids
    assert list(found) == oracle().greedy(case, 40, logits_processor=LogitsProcessorList(processors))
    assert list(found)[: len(plain)] != plain


def test_cancel_while_generating_and_before(engine: TransformersEngine) -> None:
    third = threading.Event()
    seen: list[Token] = []

    def see(token: Token) -> None:
        seen.append(token)
        if len(seen) == 3:
            third.set()

    request = replace(make_case("one image").request, sampling=Sampling(max_new_tokens=400))
    generation = engine.submit(request, see)
    assert third.wait(10)
    generation.cancel()
    result = generation.future.result(10)
    assert result.finish_reason == "cancelled"
    assert 3 <= len(result.generated_ids) < 400
    alone = make_engine(max_batch=1)
    first, waiting = alone.submit(request), alone.submit(request)
    waiting.cancel()
    again = waiting.future.result(10)
    assert (again.finish_reason, again.generated_ids) == ("cancelled", ())
    first.cancel()
    alone.close()


def test_full_queue_refuses_and_close_answers_who_waits() -> None:
    engine = make_engine(max_queue=1, max_batch=1)
    entered, go_on = threading.Event(), threading.Event()

    def hold(_: Token) -> None:
        entered.set()
        go_on.wait(10)

    request = make_case("text only").request
    running = engine.submit(request, hold)
    assert entered.wait(10)
    waiting = engine.submit(request)
    assert engine.stats().waiting == 1
    with pytest.raises(QueueFullError) as caught:
        engine.submit(request)
    assert caught.value.status == 429
    assert caught.value.retry_after >= 1
    with pytest.raises(QueueFullError):
        engine.check_room()
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(ServerUnavailableError):
        waiting.future.result(10)
    go_on.set()
    assert running.future.result(10).finish_reason == "cancelled"
    closer.join(10)
    with pytest.raises(ServerUnavailableError):
        engine.submit(request)


def test_error_of_one_request_leaves_the_next_alone(engine: TransformersEngine) -> None:
    def no_memory(_: Token) -> None:
        raise torch.OutOfMemoryError("none left")

    def broken(_: Token) -> None:
        raise KeyError("broken")

    request = make_case("one image").request
    with pytest.raises(OutOfMemoryError):
        engine.generate(request, no_memory)
    with pytest.raises(KeyError):
        engine.generate(request, broken)
    assert list(engine.generate(request).generated_ids) == expected("one image")


def test_longer_than_the_context_is_refused(engine: TransformersEngine) -> None:
    request = make_case("text only").request
    room = MAX_POSITIONS - request.input_ids.size
    with pytest.raises(LimitError) as caught:
        engine.prepare(replace(request, sampling=Sampling(max_new_tokens=room + 1)))
    assert caught.value.field == "sampling.max_new_tokens"
    engine.prepare(replace(request, sampling=Sampling(max_new_tokens=room)))


def test_warm_up_runs_and_bad_requests_never_reach_the_model(engine: TransformersEngine) -> None:
    assert len(engine.warm_up().generated_ids) >= 1
    with pytest.raises(ContractError):
        engine.generate(replace(make_case("one image").request, model_hash="other"))
