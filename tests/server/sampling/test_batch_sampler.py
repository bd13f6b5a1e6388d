"""A batch's next tokens, chosen at once, against transformers' own processors for each row alone, bit for bit."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.engines.transformers.sampling.batch_sampler import BatchSampler
from qwen3vl_edge.server.engines.transformers.sampling.picked import token_of
from tests.support.engine.one_row_sampler import OneRowSampler

VOCABULARY = 257
CPU = torch.device("cpu")
PLAIN = Sampling()


def request_of(sampling: Sampling, logprobs: int | None = None, prompt: tuple[int, ...] = (1, 2, 2)) -> GenerateRequest:
    return GenerateRequest(None, np.array(prompt, dtype=np.int64), sampling=sampling, logprobs=logprobs)


def any_sampling(rng: random.Random) -> Sampling:
    """Every parameter on or off; values of the ranges' ends among them."""
    return Sampling(
        do_sample=rng.random() < 0.6,
        temperature=rng.choice([1.0, 0.7, 1.5, 100.0, 1e-3]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.3, 1e-6]),
        top_k=rng.choice([0, 0, 1, 5, 50, VOCABULARY, 10_000]),
        min_p=rng.choice([None, None, 0.0, 0.1, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.7]),
        seed=rng.randrange(2**40),
        presence_penalty=rng.choice([0.0, 0.0, 1.5, -2.0]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.3, -0.7]),
        logit_bias=tuple((token, rng.uniform(-100, 100)) for token in sorted(rng.sample(range(VOCABULARY), 9)))
        if rng.random() < 0.3
        else (),
    )


def any_request(rng: random.Random) -> GenerateRequest:
    prompt = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 40)))
    return request_of(any_sampling(rng), rng.choice([None, None, None, 0, 3, 20, 400]), prompt)


@dataclass
class Alone:
    """A row's oracle and its answer until now."""

    request: GenerateRequest
    sampler: OneRowSampler
    ids: list[int]

    @classmethod
    def of(cls, request: GenerateRequest) -> Alone:
        return cls(request, OneRowSampler(request, CPU), [])

    def next(self, logits: torch.Tensor) -> Token:
        token = self.sampler.pick(logits, self.ids)
        self.ids.append(token.id)
        return token


def scores_of(rows: int, rng: random.Random) -> torch.Tensor:
    """Logits with one row of padding, of any dtype; half of them have many ties, as bfloat16 has."""
    scores = torch.randn(rows + 1, VOCABULARY, generator=torch.Generator().manual_seed(rng.randrange(2**40))) * 4
    scores[rows] = torch.nan
    return scores.to(rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_rows_get_what_they_get_alone(seed: int) -> None:
    """300 mixes each: rows join, leave in any order and are picked for, new ones also apart from the others."""
    rng = random.Random(seed)
    for _ in range(38):
        sampler, rows = BatchSampler(CPU, VOCABULARY), list[Alone]()
        for _ in range(8):
            first = len(rows)
            for _ in range(rng.randint(0, 3) if rows else 2):
                rows.append(Alone.of(any_request(rng)))
                sampler.add(rows[-1].request)
            if first < len(rows) and rng.random() < 0.5:
                check(sampler, rows, first, rng)
            check(sampler, rows, 0, rng)
            for _ in range(rng.randint(0, len(rows) - 1)):
                leaving = rng.randrange(len(rows))
                sampler.move(len(rows) - 1, leaving)
                sampler.pop()
                rows[leaving] = rows[-1]
                rows.pop()


def check(sampler: BatchSampler, rows: list[Alone], first: int, rng: random.Random) -> None:
    logits = scores_of(len(rows) - first, rng)
    before = logits.clone()
    picked = sampler.pick(logits, first).copied()
    assert torch.equal(logits[:-1], before[:-1])
    for index, row in enumerate(rows[first:]):
        found, expected = token_of(picked, index, row.request.logprobs), row.next(logits[index])
        assert (found.id, found.logprob) == (expected.id, expected.logprob), row.request.sampling
        assert [value for _, value in found.top] == [value for _, value in expected.top]
        by_id = logits[index].float().log_softmax(dim=-1)  # which of equal ones come first is open
        assert all(float(by_id[token]) == value for token, value in found.top)
        assert len({token for token, _ in found.top}) == len(found.top)


@pytest.mark.parametrize("vocabulary", [7, 5003, 151_936])
def test_a_draw_is_multinomials(vocabulary: int) -> None:
    """The largest of p / noise is what `torch.multinomial` gives for one sample with the same generator."""
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    sampler = BatchSampler(CPU, vocabulary)
    for seed in range(3):
        sampler.add(request_of(Sampling(do_sample=True, top_k=0, seed=seed)))
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    for _ in range(4):
        probabilities = logits.softmax(dim=-1)
        drawn = [
            int(torch.multinomial(row, 1, generator=own)) for row, own in zip(probabilities, generators, strict=True)
        ]
        assert sampler.pick(logits).ids.tolist() == drawn


def test_penalties_by_hand() -> None:
    """vLLM's formula: (4 + 2) / 2 for a token of the prompt; a token of the answer loses n · frequency + presence."""
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25, logit_bias=((1, 2.0),))
    logits = torch.tensor([[5.9, 4.0, -1.0, 2.8]])
    sampler = BatchSampler(CPU, 4)
    sampler.add(request_of(sampling, prompt=(1, 2)))
    # 0: 5.9; then 5.9 / 2 - 0.75 = 2.2. 1: (4 + 2) / 2 = 3; then 2.25, 1.75. 2: -1 · 2. 3: 2.8; then 1.4 - 0.75
    assert [int(sampler.pick(logits).ids) for _ in range(4)] == [0, 1, 3, 1]


def test_greedy_rows_cost_an_argmax_alone() -> None:
    sampler = BatchSampler(CPU, 3)
    sampler.add(request_of(PLAIN))
    picked = sampler.pick(torch.tensor([[0.0, 2.0, 1.0], [9.0, 0.0, 0.0]], dtype=torch.bfloat16))
    assert picked.ids.tolist() == [1]
    assert (picked.chosen_logprobs, picked.top_ids, picked.top_logprobs, picked.undrawn) == (None,) * 4


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_scores_that_are_not_numbers_fail_their_row_alone(wrong: float) -> None:
    sampler = BatchSampler(CPU, 3)
    for _ in range(2):
        sampler.add(request_of(Sampling(do_sample=True, seed=1)))
    sampler.add(request_of(PLAIN))
    picked = sampler.pick(torch.tensor([[0.0, wrong, 0.0], [0.0, 50.0, 0.0], [0.0, 0.0, 1.0]])).copied()
    with pytest.raises(ArithmeticError, match="not finite"):
        token_of(picked, 0, None)
    assert [token_of(picked, row, None).id for row in (1, 2)] == [1, 2]


def test_places_of_counts_are_used_again() -> None:
    sampler = BatchSampler(CPU, 3)
    sampling = Sampling(frequency_penalty=2.0)
    for _ in range(20):
        sampler.add(request_of(sampling))
        logits = torch.tensor([[1.0, 1.5, 0.0]])
        assert [int(sampler.pick(logits).ids) for _ in range(3)] == [1, 0, 2]  # nothing of the row before
        sampler.pop()
    assert len(sampler) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_nothing_waits_for_the_gpu() -> None:
    rng = random.Random(1)
    device = torch.device("cuda")
    requests = [any_request(rng) for _ in range(32)]
    on_cpu, on_gpu = BatchSampler(CPU, VOCABULARY), BatchSampler(device, VOCABULARY)
    logits = torch.randn(33, VOCABULARY)
    moved = logits.to(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for sampler in (on_cpu, on_gpu):
            for request in requests:
                sampler.add(request)
            sampler.move(31, 4)
            sampler.pop()
        copies = [on_gpu.pick(moved).copied() for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    first = on_cpu.pick(logits)
    left = [*requests[:4], requests[31], *requests[5:31]]
    for index, request in enumerate(left):
        assert request.sampling.do_sample or int(copies[0].ids[index]) == int(first.ids[index])
    assert all(int(copy.ids.max()) < VOCABULARY for copy in copies)
