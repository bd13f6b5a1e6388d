"""Qwen3.5's language model, whose recurrent layers keep states: the unsplit model's answers, whatever runs beside them."""

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
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.engines.transformers.pace import Pace
from qwen3vl_edge.server.engines.transformers.prefill import Prefilled, prefill, prefill_together
from qwen3vl_edge.server.options import ServerOptions
from tests.support.engine.called_steps import CalledSteps
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


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", TYPES)
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
            sampling=Sampling(
                max_new_tokens=rng.choice(LENGTHS),
                do_sample=index % 3 == 0,
                temperature=1.5,
                top_p=0.95,
                seed=index,
                repetition_penalty=1.2 if index % 5 == 0 else 1.0,
            ),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("kind", TYPES)
def test_tokens_in_a_batch_equal_those_alone(kind: str, called: CalledSteps) -> None:
    """Padded rows and a trial of each size are part of it; `capture=False` runs the very rows."""
    requests = mixed_requests(kind, 40, 3)
    with running(kind, max_batch=1, capture=False) as engine:
        expected = finish([engine.submit(item) for item in requests])
    for capture in (False, True):
        with running(kind, max_batch=7, capture=capture) as engine:
            assert finish([engine.submit(item) for item in requests]) == expected
            stats = engine.stats()
            assert stats.step_rows / stats.steps > 3  # they did share steps
    assert {key[2] for key in called.keys} >= {4, 7}
