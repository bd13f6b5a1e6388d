"""What came of a run: requests and tokens per second, time to first token and between tokens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class Sample:
    """One request, in seconds since the run began.

    Attributes:
        due: when it was to be sent; later than that it waited for the generator, not for the server.
        tokens: times at which each token came; empty where it was refused.
        refused: the reason, None for an answer.
    """

    due: float
    tokens: tuple[float, ...]
    refused: str | None = None


@dataclass(frozen=True)
class Run:
    """All requests of one run."""

    samples: tuple[Sample, ...]
    seconds: float
    sent_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        return sum(len(sample.tokens) for sample in self.samples) / self.seconds


def summarise(run: Run) -> dict[str, Any]:
    """Figures of one run; seconds."""
    answered = [sample for sample in run.samples if sample.tokens]
    first = [sample.tokens[0] - sample.due for sample in answered]
    refused: dict[str, int] = {}
    for sample in run.samples:
        if sample.refused is not None:
            refused[sample.refused] = refused.get(sample.refused, 0) + 1
    return {
        "requests": len(run.samples),
        "answered": len(answered),
        "refused": refused,
        "seconds": round(run.seconds, 3),
        "requests_per_second": round(len(answered) / run.seconds, 3),
        "tokens_per_second": round(run.tokens_per_second, 2),
        "sent_bytes": run.sent_bytes,
        "first_token_s": percentiles(first),
        "between_tokens_s": percentiles(gaps(run)),
    }


def gaps(run: Run) -> list[float]:
    """Seconds between the tokens of each answer, of all answers."""
    return [
        later - earlier
        for sample in run.samples
        for earlier, later in zip(sample.tokens, sample.tokens[1:], strict=False)
    ]


def decode_tokens_per_second(run: Run) -> float | None:
    """Tokens per second while all answers are under way: after the last one's first token, until the first has ended.

    None where they are never under way together.
    """
    answered = [sample.tokens for sample in run.samples if sample.tokens]
    start, end = max(tokens[0] for tokens in answered), min(tokens[-1] for tokens in answered)
    count = sum(start < time <= end for tokens in answered for time in tokens)
    return count / (end - start) if count else None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99; empty for no values."""
    if not values:
        return {}
    if len(values) == 1:
        return {f"p{percent}": round(values[0], 4) for percent in PERCENTS}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": round(cuts[percent - 1], 4) for percent in PERCENTS}
