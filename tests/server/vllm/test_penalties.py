"""Biases and penalties of the embedded engine against vLLM's own functions, in vLLM's environment."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.paths import ROOT
from tests.support.vllm.stock_server import PYTHON, SITE, needs_vllm

pytestmark = [pytest.mark.vllm, needs_vllm]
COMPARE = """
import random, torch
from vllm import SamplingParams
from vllm.model_executor.layers.utils import apply_penalties
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.transformers.sampling.score_changes import TokenCounts, score_changes
from qwen3vl_edge.server.engines.vllm.sampling import sampling_arguments

cpu, size, rng = torch.device("cpu"), 50, random.Random(1)
for mix in range(100):
    rows, answers, prompts = [], [], []
    counts = TokenCounts(cpu, size)
    for _ in range(4):
        repetition = rng.choice([1.0, 1.0, 0.5, 2.0])  # reciprocals without rounding
        bias = tuple((token, rng.uniform(-9, 9)) for token in sorted(rng.sample(range(size), 3)))
        sampling = Sampling(
            repetition_penalty=repetition, presence_penalty=rng.uniform(-2, 2),
            frequency_penalty=rng.uniform(-2, 2), logit_bias=bias if mix % 2 else (),
        )
        prompts.append([rng.randrange(size) for _ in range(10)])
        answers.append([rng.randrange(size) for _ in range(20)])
        request = GenerateRequest(None, torch.tensor(prompts[-1]).numpy(), sampling=sampling)
        theirs = SamplingParams(**sampling_arguments(request, (1,)))
        assert (theirs.logit_bias or {}) == dict(sampling.logit_bias)
        assert theirs.presence_penalty == sampling.presence_penalty
        assert theirs.frequency_penalty == sampling.frequency_penalty
        rows.append((sampling, counts.take(torch.tensor(prompts[-1]).numpy())))
    places = torch.tensor([place for _, place in rows])
    for column in torch.tensor(answers).T:
        counts.record(places, column)
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(mix)) * 4
    found = score_changes(rows, size, cpu).apply(logits, counts)
    for row, (sampling, _) in enumerate(rows):
        for token, bias in sampling.logit_bias:
            logits[row, token] += bias
    expected = apply_penalties(
        logits, torch.tensor(prompts), torch.tensor(answers),
        *(torch.tensor([getattr(sampling, name) for sampling, _ in rows])
          for name in ("presence_penalty", "frequency_penalty", "repetition_penalty")),
    )
    assert torch.equal(found, expected), mix
"""


def test_scores_are_vllms_to_the_bit() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT)])}
    command = [str(PYTHON), "-c", COMPARE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
