"""A server's queue and batch in simulated time: what a fleet would see, from the costs of a prompt and of a step.

The policy is the engine's own (server/engines/transformers/engine.py): between two decoding steps one waiting prompt
is computed, if the batch has room; a step brings every request under way one token.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Costs:
    """Seconds that a server's work takes.

    Attributes:
        prompt_token_s: of one prompt token.
        step_s: of a decoding step, whatever the batch: reading the weights.
        step_row_s: more of it per request in the batch: reading its keys and values.
        max_batch: requests that are decoded together.
    """

    prompt_token_s: float
    step_s: float
    step_row_s: float
    max_batch: int


@dataclass(frozen=True)
class Traffic:
    """What one server gets.

    Attributes:
        per_second: requests, arriving independently (Poisson).
        prompt_tokens, new_tokens: mean per request; each request draws from half to one and a half times that.
        max_queue: requests that may wait; the next is refused.
    """

    per_second: float
    prompt_tokens: int
    new_tokens: int
    max_queue: int = 64


@dataclass
class Outcome:
    """Of one simulated server; seconds.

    Attributes:
        busy: share of the time in which it worked.
        refused: share of the requests.
    """

    first_token_s: list[float] = field(default_factory=list)
    between_tokens_s: list[float] = field(default_factory=list)
    busy: float = 0.0
    refused: float = 0.0
    mean_batch: float = 0.0


@dataclass
class _Row:
    left: int
    last: float


def simulate(costs: Costs, traffic: Traffic, seconds: float, seed: int = 0) -> Outcome:
    """Run one server for so many simulated seconds; the first tenth warms it up and is not counted."""
    rng = random.Random(seed)
    outcome, arrivals = Outcome(), _arrivals(rng, traffic, seconds)
    waiting: deque[tuple[float, int, int]] = deque()
    batch: list[_Row] = []
    now = worked = 0.0
    steps = rows = came = refused = 0
    warm = seconds / 10
    upcoming = next(arrivals, None)
    while upcoming is not None or waiting or batch:
        if not waiting and not batch and upcoming is not None:
            now = max(now, upcoming[0])
        while upcoming is not None and upcoming[0] <= now:
            came += 1
            if len(waiting) < traffic.max_queue:
                waiting.append(upcoming)
            else:
                refused += 1
            upcoming = next(arrivals, None)
        began = now
        if waiting and len(batch) < costs.max_batch:
            arrived, prompt, new = waiting.popleft()
            now += prompt * costs.prompt_token_s
            if arrived >= warm:
                outcome.first_token_s.append(now - arrived)
            if new > 1:
                batch.append(_Row(new - 1, now))
        if batch:
            now += costs.step_s + len(batch) * costs.step_row_s
            steps, rows = steps + 1, rows + len(batch)
            batch = _advance(batch, now, outcome, counted=now >= warm)
        worked += now - began
    outcome.busy = worked / max(now, seconds)
    outcome.refused = refused / max(came, 1)
    outcome.mean_batch = rows / max(steps, 1)
    return outcome


def _advance(batch: list[_Row], now: float, outcome: Outcome, counted: bool) -> list[_Row]:
    for row in batch:
        if counted:
            outcome.between_tokens_s.append(now - row.last)
        row.left, row.last = row.left - 1, now
    return [row for row in batch if row.left > 0]


def _arrivals(rng: random.Random, traffic: Traffic, seconds: float) -> Iterator[tuple[float, int, int]]:
    """Times with prompt and answer lengths."""
    now = rng.expovariate(traffic.per_second)
    while now < seconds:
        yield now, _around(rng, traffic.prompt_tokens), max(1, _around(rng, traffic.new_tokens))
        now += rng.expovariate(traffic.per_second)


def _around(rng: random.Random, mean: int) -> int:
    return rng.randint(mean // 2, mean + mean // 2)
