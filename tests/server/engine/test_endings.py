"""Every request is answered, whatever fails, and the engine goes on, or says that it cannot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import EngineDiedError, GenerateResult, Generation, Token
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.kv_cache.slab import KvSlab
from qwen3vl_edge.server.errors import OutOfMemoryError, ShuttingDownError
from tests.server.engine.test_batching import finish, make_engine
from tests.support.server_checkpoint import make_case
from tests.support.waiting import until

torch.set_num_threads(1)
Patch = pytest.MonkeyPatch


def request_of(tokens: int, name: str = "text only") -> GenerateRequest:
    return replace(make_case(name).request, sampling=Sampling(max_new_tokens=tokens))


def answer(engine: TransformersEngine) -> GenerateResult:
    return engine.submit(request_of(5)).future.result(20)


class Held:
    """A request that holds the engine's thread at its first token until `let_go`."""

    def __init__(self, engine: TransformersEngine, tokens: int = 40) -> None:
        self._entered, self._go_on = threading.Event(), threading.Event()
        self.generation = engine.submit(request_of(tokens), self._hold)
        assert self._entered.wait(20)

    def let_go(self) -> None:
        self._go_on.set()

    def _hold(self, _: Token) -> None:
        self._entered.set()
        self._go_on.wait(20)


@pytest.fixture
def engine() -> Iterator[TransformersEngine]:
    engine = make_engine(max_batch=4, prefix_bytes=2**20)
    yield engine
    engine.close()


def no_memory(*_: object) -> torch.Tensor:
    """What torch's CPU allocator really raises."""
    return torch.zeros(2**46)


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("broken")


@pytest.mark.parametrize(("fault", "kind"), [(no_memory, OutOfMemoryError), (broken, RuntimeError)])
def test_who_gets_no_room_fails_and_the_next_is_answered(
    engine: TransformersEngine, monkeypatch: Patch, fault: Callable[..., Any], kind: type[Exception]
) -> None:
    expected = answer(engine).generated_ids
    engine._scheduler.prefixes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(KvSlab, "reserve", fault)
        assert isinstance(engine.submit(request_of(5)).future.exception(20), kind)
    assert answer(engine).generated_ids == expected


def test_prefixes_are_given_up_before_a_request_fails(engine: TransformersEngine, monkeypatch: Patch) -> None:
    expected = answer(engine).generated_ids
    until(lambda: engine.stats().kept_bytes)
    reserve = KvSlab.reserve

    def little(slab: KvSlab, *sizes: Any) -> None:
        if engine.stats().kept_bytes:
            no_memory()
        reserve(slab, *sizes)

    monkeypatch.setattr(KvSlab, "reserve", little)
    result = answer(engine)
    assert (result.generated_ids, result.reused_tokens) == (expected, 0)


def memory_for_rows(most: int, monkeypatch: Patch) -> None:
    """There is none for more rows."""
    reserve = KvSlab.reserve

    def little(slab: KvSlab, rows: int, *sizes: Any) -> None:
        if rows > most:
            no_memory()
        reserve(slab, rows, *sizes)

    monkeypatch.setattr(KvSlab, "reserve", little)


def test_without_memory_for_all_of_a_group_the_others_wait(engine: TransformersEngine, monkeypatch: Patch) -> None:
    expected = answer(engine).generated_ids
    memory_for_rows(2, monkeypatch)
    held = Held(engine, tokens=1)
    group = [engine.submit(request_of(5), client=str(index)) for index in range(4)]
    held.let_go()
    assert finish(group) == [expected] * 4


def test_who_leaves_while_memory_is_short_is_answered_at_once(engine: TransformersEngine, monkeypatch: Patch) -> None:
    memory_for_rows(1, monkeypatch)
    held = Held(engine, tokens=10**4 // 16)
    waits = engine.submit(request_of(5))
    held.let_go()
    until(lambda: engine._scheduler._short)
    waits.cancel()
    assert waits.future.result(20).finish_reason == "cancelled"
    assert not held.generation.future.done()
    held.generation.cancel()


def test_a_result_that_cannot_be_made_is_an_error(engine: TransformersEngine, monkeypatch: Patch) -> None:
    expected = answer(engine).generated_ids
    with monkeypatch.context() as patch:
        patch.setattr(type(engine.loaded.tokenizer), "decode", broken)
        assert isinstance(engine.submit(request_of(5)).future.exception(20), RuntimeError)
    assert answer(engine).generated_ids == expected


def test_a_prefix_that_cannot_be_kept_fails_nobody(engine: TransformersEngine, monkeypatch: Patch) -> None:
    monkeypatch.setattr(KvSlab, "copy", broken)
    assert len({answer(engine).generated_ids for _ in range(2)}) == 1
    assert engine.stats().kept_bytes == 0


def test_a_device_that_fails_at_everything_is_told(engine: TransformersEngine, monkeypatch: Patch) -> None:
    """As CUDA does after an illegal access: what would begin anew fails too."""
    held = Held(engine)
    waiting: list[Generation] = [engine.submit(request_of(5), client=str(index)) for index in range(6)]
    monkeypatch.setattr(engine.loaded.model, "forward", broken)
    monkeypatch.setattr(KvSlab, "release", broken)
    held.let_go()
    assert isinstance(held.generation.future.exception(20), RuntimeError)
    assert all(generation.future.exception(20) is not None for generation in waiting)
    until(lambda: engine.stats().dead)
    with pytest.raises(EngineDiedError):
        engine.submit(request_of(5))


def test_who_is_queued_while_the_engine_closes_is_refused(engine: TransformersEngine, monkeypatch: Patch) -> None:
    put = engine._queue.put

    def late(*item: Any) -> None:
        engine.close()
        put(*item)

    monkeypatch.setattr(engine._queue, "put", late)
    with pytest.raises(ShuttingDownError):
        engine.submit(request_of(5))


def test_waiting_for_the_device_counts_as_a_step(engine: TransformersEngine, monkeypatch: Patch) -> None:
    """A GPU that hangs shows where the host reads its tokens."""
    seen: list[float | None] = []
    arrived = engine._scheduler.batch.arrived

    def reading(under_way: int) -> Any:
        if engine._scheduler.batch.rows:
            seen.append(engine._scheduler.progress)
        return arrived(under_way)

    monkeypatch.setattr(engine._scheduler.batch, "arrived", reading)
    engine.generate(request_of(1))
    assert seen
    assert None not in seen
