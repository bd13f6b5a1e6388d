"""Qwen3.5's language model, whose recurrent layers keep states: the unsplit model's answers, whatever runs beside."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import Generation
from qwen3vl_edge.server.engines.transformers import scheduler
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import RecurrentStates
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.engines.transformers.pace import Pace
from qwen3vl_edge.server.engines.transformers.prefill import Prefilled, prefill, prefill_together
from qwen3vl_edge.server.options import ServerOptions
from tests.support.engine.called_steps import CalledSteps
from tests.support.engine.drawn_sampling import sampling_of
from tests.support.engine.layer_bytes import layers_bytes
from tests.support.model_types.tiny_checkpoint import oracle_of
from tests.support.server_checkpoint import CASE_NAMES, Case, build_case
from tests.support.waiting import until

torch.set_num_threads(1)
TYPES = ("qwen3_5", "qwen3_5_moe")
LENGTHS = (1, 2, 7, 20, 33)
TOKENS = 12


@cache
def case_of(kind: str, name: str) -> Case:
    return build_case(oracle_of(kind), name, max_new_tokens=TOKENS)


def request_of(kind: str, name: str, tokens: int = TOKENS) -> GenerateRequest:
    return replace(case_of(kind, name).request, sampling=Sampling(max_new_tokens=tokens))


def load(kind: str) -> LoadedModel:
    return load_language_model(oracle_of(kind).checkpoint, ServerOptions(model="", device_map="cpu"))


@contextmanager
def running(kind: str, **options: Any) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(load(kind), options=BatchOptions(**{"max_queue": 256, **options}))
    try:
        yield engine
    finally:
        engine.close()


def finish(generations: list[Generation]) -> list[tuple[int, ...]]:
    return [generation.future.result(60).generated_ids for generation in generations]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> CalledSteps:
    """Steps at the sizes of captured ones, with a trial before the first of each size."""
    steps = CalledSteps()
    monkeypatch.setattr(scheduler, "captured_steps", lambda loaded, wanted: steps if wanted else None)
    return steps


@pytest.mark.parametrize(("kind", "batch"), [("qwen3_5", 1), ("qwen3_5", 5), ("qwen3_5_moe", 5)])
def test_greedy_tokens_equal_the_unsplit_model(kind: str, batch: int) -> None:
    requests = [decode_request(bytearray(bytes(encode_request(request_of(kind, name))))) for name in CASE_NAMES]
    with running(kind, max_batch=batch) as engine:
        found = finish([engine.submit(engine.prepare(request)) for request in requests])
    assert [list(ids) for ids in found] == [oracle_of(kind).greedy(case_of(kind, name), TOKENS) for name in CASE_NAMES]


def close(found: Prefilled, expected: Prefilled) -> None:
    assert found.delta == expected.delta
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for one, other in zip(found.layers, expected.layers, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASE_NAMES)
def test_pieces_and_prompts_together_leave_the_states_of_the_whole(name: str) -> None:
    loaded, request = load("qwen3_5"), request_of("qwen3_5", name)
    whole = prefill(request, loaded)
    for piece in (1, 3, 20):
        close(prefill(request, loaded, most_tokens=lambda piece=piece: piece), whole)  # type: ignore[misc]
    cut = [replace(request_of("qwen3_5", "text only"), input_ids=np.arange(10, 10 + size)) for size in (1, 2, 3, 70)]
    group = [*cut, request, request_of("qwen3_5", "multi-turn")]
    for found, alone in zip(prefill_together(group, loaded), group, strict=True):
        close(found, prefill(alone, loaded))


def mixed_requests(kind: str, count: int, seed: int) -> list[GenerateRequest]:
    """Of all cases and lengths; a third are sampled, with seeds, a few with a repetition penalty."""
    rng = random.Random(seed)
    return [
        replace(
            request_of(kind, rng.choice(CASE_NAMES)),
            sampling=sampling_of(index, rng.choice(LENGTHS)),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(("kind", "count"), [("qwen3_5", 40), ("qwen3_5_moe", 12)])
def test_tokens_in_a_batch_equal_those_alone(kind: str, count: int, called: CalledSteps) -> None:
    """Rows that join, move and leave, padded rows, and a trial of each size are part of it."""
    requests = mixed_requests(kind, count, 3)
    with running(kind, max_batch=1, capture=False) as engine:
        expected = finish([engine.submit(item) for item in requests])
    with running(kind, max_batch=7) as engine:
        assert finish([engine.submit(item) for item in requests]) == expected
        stats = engine.stats()
        assert stats.step_rows / stats.steps > 3  # they did share steps
    assert {key[2] for key in called.keys} >= {4, 7}


def test_who_leaves_and_answers_between_layers_change_nobody_elses(
    called: CalledSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is due before every layer, prompts come in pieces, and clients leave in the middle."""
    monkeypatch.setattr(Pace, "due", True)
    monkeypatch.setattr(Pace, "piece", 7)
    monkeypatch.setattr(Pace, "is_long", lambda *_: True)
    with running("qwen3_5", max_batch=4) as engine:
        expected = finish([engine.submit(request_of("qwen3_5", name, 25)) for name in CASE_NAMES])
        generations = []
        for index, name in enumerate(CASE_NAMES):
            leaving = threading.Event()
            longer = request_of("qwen3_5", name, 200)
            left = engine.submit(longer, lambda _, leaving=leaving: leaving.set())
            generations.append(engine.submit(request_of("qwen3_5", name, 25)))
            if index % 2:
                leaving.wait(10)
            left.cancel()
        assert finish(generations) == expected


@pytest.mark.parametrize(("kind", "value"), [("qwen3_5", np.nan), ("qwen3_5", 1e38), ("qwen3_5_moe", np.inf)])
def test_numbers_that_overflow_reach_no_other_request(called: CalledSteps, kind: str, value: float) -> None:
    """They end in the states of their row, which others use later."""
    good = request_of(kind, "one image", 20)
    media = replace(good.media[0], embeds=np.full_like(good.media[0].embeds, value, np.float32))
    hostile = replace(good, media=(media,), sampling=Sampling(max_new_tokens=200))
    with running(kind, max_batch=4) as engine:
        expected = engine.submit(good).future.result(20).generated_ids
        entered = threading.Event()
        left = engine.submit(hostile, lambda _: entered.set())
        assert entered.wait(20)
        beside = [engine.submit(good) for _ in range(3)]
        assert finish(beside) == [expected] * 3
        left.cancel()
        assert finish([engine.submit(good) for _ in range(4)]) == [expected] * 4
        group = prefill_together([hostile, good], engine.loaded)
        close(group[1], prefill(good, engine.loaded))


def next_turn(request: GenerateRequest, answer: tuple[int, ...], more: GenerateRequest) -> GenerateRequest:
    """The conversation so far, the answer, and another question with its own media."""
    ids = np.concatenate([request.input_ids, np.array(answer, dtype=np.int64), more.input_ids])
    return replace(request, input_ids=ids, media=(*request.media, *more.media))


@pytest.mark.parametrize("ahead", [False, True], ids=["at once", "one step later"])
def test_the_next_turn_continues_the_states_of_the_last(called: CalledSteps, ahead: bool) -> None:
    """With a step ahead of the host, the states have read the token that ended the answer, and count it."""
    kind, ended = "qwen3_5", 0
    options: dict[str, Any] = {"capture": ahead, "prefix_bytes": 2**24}
    with running(kind, **options) as cached, running(kind, capture=False) as plain:
        for name in ("one image", "image and clip", "multi-turn"):
            one, other = request_of(kind, name), request_of(kind, "one image")
            usual = plain.generate(one).generated_ids
            end = next(token for index, token in enumerate(usual) if index >= 3 and token not in usual[:index])
            for engine in (cached, plain):
                object.__setattr__(engine.loaded, "end_ids", (end,))
            answer = cached.generate(one).generated_ids
            assert answer == usual[: usual.index(end) + 1]
            ended += len(answer) < TOKENS
            until(lambda: cached.stats().running == 0)
            turn = next_turn(one, answer, other)
            found, expected = cached.generate(turn), plain.generate(turn)
            assert found.generated_ids == expected.generated_ids
            in_states = len(answer) - (0 if ahead and len(answer) < TOKENS else 1)
            assert found.reused_tokens == one.input_ids.size + in_states
            until(lambda: cached.stats().running == 0)
            third = next_turn(turn, found.generated_ids, other)
            again = cached.generate(third)
            assert again.generated_ids == plain.generate(third).generated_ids
            assert again.reused_tokens > turn.input_ids.size
            for engine in (cached, plain):
                object.__setattr__(engine.loaded, "end_ids", ())
    assert ended > 1


def test_states_of_more_than_the_common_prefix_are_not_used() -> None:
    kind = "qwen3_5"
    request = request_of(kind, "multi-turn")
    with running(kind, prefix_bytes=2**24) as engine, running(kind) as plain:
        answer = engine.generate(request).generated_ids
        other = (*answer[:-2], answer[-2] + 1, answer[-1])
        media = (request.media[0], replace(request.media[1], embeds=request.media[1].embeds + 0.25, hash=None))
        turn = next_turn(request, answer, request_of(kind, "text only"))
        for changed in (
            request,
            next_turn(request, answer[:5], request_of(kind, "text only")),
            next_turn(request, other, request_of(kind, "text only")),
            replace(turn, media=media),
        ):
            found = engine.generate(changed)
            assert found.reused_tokens == 0
            assert found.generated_ids == plain.generate(changed).generated_ids


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_of_tokens_and_states_are_what_a_prefill_makes(kind: str) -> None:
    loaded, request = load(kind), request_of(kind, "clip")
    layers = prefill(request, loaded).layers
    assert {index for index, layer in enumerate(layers) if isinstance(layer, RecurrentStates)} == {0, 1, 2}
    assert layers_bytes([layers[3]]) == request.input_ids.size * loaded.kv_bytes_per_token
    assert layers_bytes(layers[:3]) == loaded.state_bytes
    assert 0 <= loaded.state_tokens * loaded.kv_bytes_per_token - loaded.state_bytes < loaded.kv_bytes_per_token
