"""Long prompts that arrive while answers are under way: how much later the next tokens of those come."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.tools.dev.load.engine.batch import PATIENCE_S, TEXT_IDS, Answer, Batch
from qwen3vl_edge.tools.dev.load.figures import percentiles

QUIET_TOKENS = 16  # of each answer before the first long prompt: the median without one


@dataclass(frozen=True)
class Arrivals:
    """What comes.

    Attributes:
        answers: under way, of `Batch` length prompts; they run until all has been measured.
        prompts: long ones, each sent when the one before has its first token.
        prompt_tokens: of each long prompt.
        new_tokens: of their answers.
    """

    answers: int = 8
    prompts: int = 4
    prompt_tokens: int = 4000
    new_tokens: int = 16


def measure_arrivals(engine: Any, arrivals: Arrivals, batch: Batch, most_tokens: int) -> dict[str, Any]:
    """Seconds between tokens of the answers under way, from the first arrival until the last long prompt's answer.

    Args:
        engine: with room for the answers and one prompt more.
        most_tokens: of the answers; they are cancelled earlier.

    Raises:
        RuntimeError: an answer ended before the last prompt, so that nothing would be known of what came after.
    """
    model_hash = engine.loaded.shape.model_hash
    texts = Batch(arrivals.answers, batch.prompt_tokens, most_tokens).requests(model_hash)
    under_way = [Answer.submit(engine, request) for request in texts]
    while min(len(answer.times) for answer in under_way) < QUIET_TOKENS:
        _wait_for_a_token(under_way)
    quiet, first_tokens = _gaps(under_way, 0.0, float("inf")), []
    waited, began = [], None
    for number in range(arrivals.prompts):
        answer = Answer.submit(engine, _long_prompt(model_hash, arrivals, number))
        began = began or time.perf_counter()
        sent = time.perf_counter()
        if not answer.started.wait(PATIENCE_S):
            raise RuntimeError("a long prompt got no token")
        first_tokens.append(answer.times[0] - sent)
        waited.append(answer)
    for answer in waited:
        answer.generation.future.result(PATIENCE_S)
    ended = time.perf_counter()
    lasted = not any(answer.generation.future.done() for answer in under_way)
    for answer in under_way:
        answer.generation.cancel()
    if not lasted:
        raise RuntimeError(f"an answer of {most_tokens} tokens ended before the last long prompt's")
    between = _gaps(under_way, began or 0.0, ended)
    times = percentiles(between)
    return {
        "answers": arrivals.answers,
        "long_prompts": arrivals.prompts,
        "long_prompt_tokens": arrivals.prompt_tokens,
        "between_tokens_s": {**times, "max": round(max(between), 4)},
        "quiet_between_tokens_s": percentiles(quiet),
        "p99_over_median": round(times["p99"] / times["p50"], 3),
        "p99_over_quiet_median": round(times["p99"] / statistics.median(quiet), 3),
        "long_first_token_s": percentiles(first_tokens),
        "tokens_per_second": round(len(between) / (ended - (began or 0.0)), 2),
    }


def _wait_for_a_token(answers: Sequence[Answer]) -> None:
    slowest = min(answers, key=lambda answer: len(answer.times))
    slowest.started.clear()
    if not slowest.started.wait(PATIENCE_S):
        raise RuntimeError("the answers stopped")


def _gaps(answers: Sequence[Answer], start: float, end: float) -> list[float]:
    """Between tokens of one answer, those whose later token came from `start` to `end`."""
    return [
        later - earlier
        for answer in answers
        for earlier, later in zip(answer.times, answer.times[1:], strict=False)
        if start < later <= end
    ]


def _long_prompt(model_hash: str, arrivals: Arrivals, number: int) -> GenerateRequest:
    ids = (np.arange(arrivals.prompt_tokens, dtype=np.int64) * 5 + 11 * (number + 1)) % TEXT_IDS + 5
    sampling = Sampling(max_new_tokens=arrivals.new_tokens)
    return GenerateRequest(model_hash, ids, sampling=sampling, stream=True, request_id=f"long-{number}")
