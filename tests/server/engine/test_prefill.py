"""Prompts in pieces, several together, and answers that go on between the layers of a long one."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.server.engines.transformers import scheduler
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.engines.transformers.pace import FIRST_PIECE, MIN_PIECE, SHARE, Pace
from qwen3vl_edge.server.engines.transformers.prefill import Prefilled, prefill, prefill_together
from qwen3vl_edge.server.options import ServerOptions
from tests.server.engine.test_batching import finish, make_engine
from tests.support.engine.called_steps import CalledSteps
from tests.support.server_checkpoint import CASE_NAMES, make_case, oracle
from tests.support.waiting import until

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_language_model(oracle(False).checkpoint, ServerOptions(model="", device_map="cpu"))


def close(found: Prefilled, expected: Prefilled) -> None:
    assert found.delta == expected.delta
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for one, other in zip(found.layers, expected.layers, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("piece", [1, 3, 8, 1000])
@pytest.mark.parametrize("name", CASE_NAMES)
def test_pieces_that_cut_media_anywhere_compute_the_whole(loaded: LoadedModel, name: str, piece: int) -> None:
    request = make_case(name).request
    close(prefill(request, loaded, most_tokens=lambda: piece), prefill(request, loaded))


@pytest.mark.parametrize("rows", [2, 5])
def test_prompts_together_are_those_alone(loaded: LoadedModel, rows: int) -> None:
    requests = [make_case(name).request for name in (*CASE_NAMES, *CASE_NAMES)]
    for first in range(0, len(CASE_NAMES), 2):
        group = requests[first : first + rows]
        for found, request in zip(prefill_together(group, loaded), group, strict=True):
            close(found, prefill(request, loaded))


@pytest.fixture
def eager_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is due before every layer, and pieces are of seven tokens."""
    monkeypatch.setattr(Pace, "due", True)
    monkeypatch.setattr(Pace, "piece", 7)
    monkeypatch.setattr(Pace, "is_long", lambda *_: True)


def test_answers_go_on_while_a_prompt_is_computed(eager_pace: None) -> None:
    engine = make_engine(max_batch=3)
    running = replace(make_case("image and clip").request, sampling=Sampling(max_new_tokens=200))
    long = make_case("clip before image").request
    expected = [engine.submit(item).future.result(60).generated_ids for item in (running, long)]
    until(lambda: engine.stats().running == 0)
    entered, order = threading.Event(), []

    def told(_: object) -> None:
        order.append("running")
        entered.set()

    one = engine.submit(running, told)
    assert entered.wait(20)
    before = len(order)
    other = engine.submit(long, lambda _: order.append("long"))
    assert finish([one, other]) == expected
    layers = len(engine.loaded.decoder_layers)
    assert order.index("long") - before >= min(len(expected[0]) - before, layers)  # a step for each layer at least
    engine.close()


def test_steps_between_layers_are_timed_when_the_device_has_done_them(
    eager_pace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU runs behind the host: without waiting, all layers are launched at once and a step comes after them all."""
    monkeypatch.setattr(scheduler, "captured_steps", lambda *_: CalledSteps())
    engine = make_engine(max_batch=3)
    state, order = engine._scheduler, []
    arrived = state.batch.arrived
    waited = state._endings.wait_for_device

    def reading(under_way: int) -> Any:
        if state._computing and state.batch.rows:
            order.append(under_way)
        return arrived(under_way)

    monkeypatch.setattr(state.batch, "arrived", reading)
    monkeypatch.setattr(state._endings, "wait_for_device", lambda: waited() or order.append(-1))
    entered = threading.Event()
    running = replace(make_case("image and clip").request, sampling=Sampling(max_new_tokens=200))
    one = engine.submit(running, lambda _: entered.set())
    assert entered.wait(20)
    finish([engine.submit(make_case("clip before image").request)])
    one.cancel()
    engine.close()
    between = [index for index, item in enumerate(order) if item >= 0]
    assert len(between) >= len(engine.loaded.decoder_layers)
    assert all(order[index] == 0 for index in between)  # nothing is left under way
    assert all(-1 in order[max(0, index - 2) : index] for index in between)


def test_who_leaves_while_a_prompt_is_computed_changes_nothing(eager_pace: None) -> None:
    engine = make_engine(max_batch=4, prefix_bytes=2**24)
    names = ["one image", "two images", "clip before image", "multi-turn"]
    requests = [
        replace(make_case(name).request, sampling=Sampling(max_new_tokens=9 + 3 * i)) for i, name in enumerate(names)
    ]
    expected = [engine.submit(item).future.result(60).generated_ids for item in requests]
    for _ in range(3):
        assert finish([engine.submit(item, client=str(index)) for index, item in enumerate(requests)]) == expected
    engine.close()


def test_a_prompt_that_nobody_waits_for_is_given_up_at_its_next_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_batch=2)
    request = make_case("one image").request
    expected = engine.submit(request).future.result(20).generated_ids
    entered, go_on, reached = threading.Event(), threading.Event(), []
    layers = engine.loaded.decoder_layers

    def hold(*_: object) -> None:
        entered.set()
        go_on.wait(20)

    handles = [layers[0].register_forward_pre_hook(hold)]
    handles.append(layers[-1].register_forward_pre_hook(lambda *_: reached.append(1) and None))
    left = engine.submit(request)
    assert entered.wait(20)
    left.cancel()
    go_on.set()
    assert left.future.result(20).generated_ids == ()
    assert not reached
    for handle in handles:
        handle.remove()
    assert engine.submit(request).future.result(20).generated_ids == expected
    engine.close()


def test_pace_follows_what_was_measured() -> None:
    now = [0.0]
    pace = Pace(10, lambda: now[0])
    assert pace.piece == FIRST_PIECE
    assert pace.is_long(1)
    pace.stepped(0.1)
    pace.prefilled(1000, 10.0)  # a millisecond for each token and layer
    assert pace.piece == int(SHARE * 0.1 / 0.001)
    assert [pace.is_long(tokens) for tokens in (5, 20)] == [True, True]  # none was ever faster than ten seconds
    pace.prefilled(10, 0.01)
    assert pace.is_long(20)
    assert not pace.due
    now[0] += SHARE * 0.1
    assert pace.due
    pace.stepped(None)
    assert not pace.due
    pace.prefilled(1, 1e6)
    assert pace.piece == MIN_PIECE
