"""The slab against rows of their own: whatever joins, leaves, moves and grows, each row keeps its keys and values."""

from __future__ import annotations

import random

import pytest
import torch

from qwen3vl_edge.server.engines.transformers.kv_cache import slab as slab_module
from qwen3vl_edge.server.engines.transformers.kv_cache.key_values import (
    Layers,
    RecurrentStates,
    tokens_of,
)
from qwen3vl_edge.server.engines.transformers.kv_cache.sizes import columns_for, rows_for, slab_columns, slab_tokens
from qwen3vl_edge.server.engines.transformers.kv_cache.slab import KvSlab
from tests.support.engine.layer_bytes import layers_bytes

LAYERS, HEADS, WIDTH = 3, 2, 4
MAX_TOKENS = 12_000
HYBRID = frozenset({0, 2})  # the layers that keep states
torch.manual_seed(0)


def drawn(length: int, recurrent: frozenset[int] = frozenset()) -> Layers:
    return [
        RecurrentStates(torch.randn(1, 24, 4), torch.randn(1, HEADS, 32, 16))
        if index in recurrent
        else (torch.randn(1, HEADS, length, WIDTH), torch.randn(1, HEADS, length, WIDTH))
        for index in range(LAYERS)
    ]


def equal(found: Layers, expected: Layers) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    )


class Rows:
    """A slab, and what each of its rows should hold."""

    def __init__(self, recurrent: frozenset[int] = frozenset()) -> None:
        one = drawn(1, recurrent)
        states = [layer for layer in one if isinstance(layer, RecurrentStates)]
        self.token_bytes = layers_bytes(one) - layers_bytes([*states])
        self.slab = KvSlab(LAYERS, MAX_TOKENS, recurrent, -(-layers_bytes([*states]) // self.token_bytes), 16)
        self.recurrent = recurrent
        self.expected: list[Layers] = []

    @property
    def lengths(self) -> list[int]:
        return [tokens_of(layers) for layers in self.expected]

    def add(self, length: int, room: int) -> bool:
        columns = max([*(length + 1 for length in self.lengths), length + room])
        if not self.slab.fits(len(self.expected) + 1, columns):
            return False
        self.slab.reserve(len(self.expected) + 1, columns, self.lengths)
        self.expected.append(drawn(length, self.recurrent))
        self.slab.write(len(self.expected) - 1, self.expected[-1])
        return True

    def remove(self, index: int) -> None:
        last = len(self.expected) - 1
        self.slab.clear(index, self.lengths[index])
        if index != last:
            self.slab.move(last, index, self.lengths[last])
            self.expected[index] = self.expected[last]
        self.expected.pop()

    def check(self) -> None:
        for index, (layers, length) in enumerate(zip(self.expected, self.lengths, strict=True)):
            assert equal(self.slab.copy(index, length), layers)
        used = sum(keys.count_nonzero() + values.count_nonzero() for item in self.expected for keys, values in item)
        memory = [layer.memory for layer in self.slab._layers if layer.memory is not None]
        memory += [state for slab in self.slab._states for state in slab._states or ()]
        assert sum(int(item.count_nonzero()) for item in memory) == used  # nothing of who has left is there


@pytest.mark.parametrize("recurrent", [frozenset(), HYBRID], ids=["attention", "hybrid"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_keep_what_they_hold(seed: int, recurrent: frozenset[int]) -> None:
    rng, rows, refused = random.Random(seed), Rows(recurrent), 0
    for _ in range(70):
        if rows.expected and rng.random() < 0.4:
            rows.remove(rng.randrange(len(rows.expected)))
        else:
            refused += not rows.add(rng.choice((1, 5, 40, 300, 900)), rng.choice((1, 20, 500)))
        rows.check()
        assert rows.slab.nbytes <= MAX_TOKENS * rows.token_bytes
    assert refused  # the limit was met


def test_a_single_row_may_exceed_the_limit_and_its_memory_goes_back() -> None:
    rows = Rows()
    assert rows.add(100, MAX_TOKENS)
    assert rows.slab.columns >= MAX_TOKENS + 100
    assert not rows.add(1, MAX_TOKENS)
    rows.remove(0)
    rows.slab.release()
    assert rows.slab.nbytes == 0
    assert rows.add(5, 5)
    rows.check()


def test_a_step_that_does_not_count_leaves_the_states() -> None:
    rows = Rows(HYBRID)
    for length in (3, 1, 7):
        assert rows.add(length, 2)

    def step() -> None:
        with rows.slab.states_unchanged(4):  # of a padded row too
            for layer in rows.slab.views(4, 8):
                if isinstance(layer, RecurrentStates):
                    layer.conv.add_(1)
                    layer.recurrent.mul_(float("inf"))
            raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError):
        step()
    rows.check()


@pytest.mark.parametrize("recurrent", [frozenset(), HYBRID], ids=["attention", "hybrid"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_no_memory_to_grow_leaves_the_rows_intact(
    layer: int, recurrent: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(recurrent)
    for length in (30, 7, 200, 1):
        assert rows.add(length, 10)
    zeros, calls = torch.zeros, iter(range(100))

    def fail(*size: int, **like: object) -> torch.Tensor:
        if next(calls) == layer:
            raise torch.OutOfMemoryError("none left")
        return zeros(*size, **like)  # type: ignore[call-overload, no-any-return]

    place = rows.slab.place
    monkeypatch.setattr(slab_module.torch, "zeros", fail)
    with pytest.raises(torch.OutOfMemoryError):
        rows.add(5, 2000)
    monkeypatch.undo()
    assert rows.slab.place != place  # what was captured on the old memory is not used on the new
    rows.check()
    rows.remove(0)
    assert rows.add(9, 2000)
    rows.check()


def test_memory_of_a_longer_row_that_failed_is_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers had grown before there was no memory: that too goes back with the next request."""
    rows = Rows()
    assert rows.add(30, 10)
    rows.remove(0)
    assert not rows.slab.exceeds_limit
    monkeypatch.setattr(rows.slab._layers[-1], "arrange", lambda *_: torch.zeros(2**46))
    with pytest.raises(RuntimeError, match="memory"):
        rows.add(30, MAX_TOKENS)
    assert rows.slab.exceeds_limit


def test_memory_that_nobody_uses_is_not_held_while_more_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first keys it is made when room is asked for, so that it is known before a prefill if there is none."""
    rows, zeros, held = Rows(), torch.zeros, []
    assert rows.add(30, 10)
    rows.remove(0)

    def counted(*size: int, **like: object) -> torch.Tensor:
        held.append(rows.slab.nbytes)
        return zeros(*size, **like)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(slab_module.torch, "zeros", counted)
    rows.slab.reserve(1, 5000, [])
    assert held == [rows.slab.nbytes * layer // LAYERS for layer in range(LAYERS)]


def test_sizes_are_few_and_hold_what_is_needed() -> None:
    sizes = {columns_for(needed) for needed in range(1, 40_000)}
    assert len(sizes) < 20
    assert all(needed <= columns_for(needed) <= max(256, 1.5 * needed) for needed in range(1, 40_000, 7))
    assert [rows_for(needed, 12) for needed in (1, 2, 3, 5, 9, 12)] == [1, 2, 4, 8, 12, 12]
    assert slab_columns(2, 1000, 2100) == 1024
    assert slab_columns(2, 1030, 2100) == 1050
    assert slab_columns(1, 5000, 2100) == 5000
    assert [slab_tokens(needed, 10_000) for needed in (1, 5000, 9000, 20_000)] == [4096, 8192, 10_000, 20_000]
