"""The engine with its decode steps captured in CUDA graphs, by its public behaviour alone.

The same bodies run on the CPU at toy size, where nothing is captured: they hold what does not depend on it, and cannot
rot. Shares of equal answers go to the GPU kit's JSON (`record_property`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from tests.support.engine.mixed_requests import (
    Mixed,
    answers_of,
    load_tiny,
    mixed_requests,
    running_engine,
    share_equal,
)
from tests.support.waiting import until

torch.set_num_threads(1)
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a PyTorch for it"),
]
Record = Callable[[str, object], None]
MIB = 2**20


@pytest.mark.parametrize(
    ("device", "dtype", "count"),
    [
        ("cpu", "float32", 28),
        pytest.param("cuda", "float32", 200, marks=ON_GPU),
        pytest.param("cuda", "bfloat16", 200, marks=ON_GPU),
    ],
)
def test_captured_steps_give_the_eager_ones_answers(
    device: str, dtype: str, count: int, record_property: Record
) -> None:
    """On the CPU, where neither is captured, seven rows against one."""
    loaded, requests = load_tiny(device, dtype), mixed_requests(count)
    with running_engine(loaded, max_batch=1 if device == "cpu" else 7, capture=False) as eager:
        expected = answers_of(eager, requests)
    with running_engine(loaded, max_batch=7, capture=True) as captured:
        found = answers_of(captured, requests)
        stats = captured.stats()
    assert not any(isinstance(answer, ContractError) for answer in (*expected, *found))
    assert stats.step_rows / stats.steps > 3  # they did share steps
    assert stats.reused_tokens > 0
    share = share_equal(found, expected)
    record_property("share_equal", round(share, 4))
    if dtype == "float32":
        different = [index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
        assert share == 1.0, [(index, requests[index].leaves_after) for index in different]


@pytest.mark.parametrize(
    ("device", "count"), [("cpu", 12), pytest.param("cuda", 120, marks=ON_GPU)], ids=["cpu", "cuda"]
)
def test_bf16_in_a_batch_is_bf16_alone_but_for_rounding(device: str, count: int, record_property: Record) -> None:
    """A batch's kernels round otherwise: where two tokens are as good as equal another may be taken."""
    loaded = load_tiny(device, "bfloat16")
    requests = [item for item in mixed_requests(count, seed=1) if item.leaves_after is None]
    answers = []
    for rows in (1, 8):
        with running_engine(loaded, max_batch=rows) as engine:
            answers.append(answers_of(engine, requests))
    record_property("share_equal", round(share_equal(*answers), 4))
    lengths = [[len(answer) for answer in found] for found in answers]  # type: ignore[arg-type]
    limits = [item.request.sampling.max_new_tokens for item in requests]
    assert all(0 < length <= limit for found in lengths for length, limit in zip(found, limits, strict=True))
    first = [[answer[0] for answer in found] for found in answers]  # type: ignore[index]
    assert share_equal(*first) > 0.8  # of each answer, the token that the prompt's own logits choose


@pytest.mark.parametrize(
    ("device", "warm", "steps"),
    [("cpu", 40, 200), pytest.param("cuda", 1_000, 10_000, marks=ON_GPU)],
    ids=["cpu", "cuda"],
)
def test_memory_does_not_grow(device: str, warm: int, steps: int, record_property: Record) -> None:
    """Objects, resident memory, and what torch holds on the GPU, each time with nothing under way."""
    requests = mixed_requests(33, seed=2)
    with running_engine(load_tiny(device, "float32"), max_batch=8) as engine:
        _run_until(engine, requests, warm)
        before = _held(device)
        _run_until(engine, requests, steps)
        after = _held(device)
    growth = {name: after[name] - before[name] for name in before}
    for name, value in growth.items():
        record_property(name, value)
    assert growth["objects"] < (steps - warm) / 4, growth  # one a step would be more
    assert growth["resident"] < 24 * MIB, growth
    if device == "cuda":
        assert growth["allocated"] < MIB, growth
        assert growth["reserved"] < 32 * MIB, growth


@pytest.mark.parametrize(
    ("device", "free_mib"),
    [("cpu", 0), *(pytest.param("cuda", mib, marks=ON_GPU) for mib in (16, 128))],
    ids=["cpu", "cuda-16", "cuda-128"],
)
def test_without_memory_answers_fail_or_wait_but_are_never_wrong(device: str, free_mib: int) -> None:
    """The first captures of larger batches meet a full GPU; on the CPU every third call of the model fails."""
    loaded, requests = load_tiny(device, "float32"), mixed_requests(16 if device == "cpu" else 48, seed=3)
    with running_engine(loaded, max_batch=8) as engine:
        expected = answers_of(engine, requests)
    with running_engine(loaded, max_batch=8, prefix_bytes=0) as engine:
        engine.warm_up()
        with _little_memory(loaded, free_mib):
            pressed = answers_of(engine, requests)
        for answer, right in zip(pressed, expected, strict=True):
            assert answer == right or getattr(answer, "status", None) == 503, (answer, right)
        assert answers_of(engine, requests) == expected
        until(lambda: engine.stats().running == 0)


def _run_until(engine: TransformersEngine, requests: list[Mixed], steps: int) -> None:
    while engine.stats().steps < steps:
        answers_of(engine, requests)


def _held(device: str) -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
    found = {"objects": len(gc.get_objects()), "resident": resident}
    if device == "cuda":
        torch.cuda.synchronize()
        found |= {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
    return found


@contextmanager
def _little_memory(loaded: LoadedModel, free_mib: int) -> Iterator[None]:
    """All of the GPU but `free_mib` is taken; on the CPU, whose memory is others' too, calls of the model fail."""
    if loaded.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(free - free_mib * MIB, 0), dtype=torch.uint8, device=loaded.device)
        yield
        del ballast
        torch.cuda.empty_cache()
        return
    model, calls = loaded.model, iter(range(1, 10**9))
    forward = model.forward

    def failing(*arguments: Any, **inputs: Any) -> Any:
        if next(calls) % 3 == 0:
            raise torch.OutOfMemoryError("none left")
        return forward(*arguments, **inputs)

    model.forward = failing
    yield
    model.forward = forward
