"""The candidates on one batch, in alternating rounds of one run: a row each, with ratios to the engine round by round.

A ratio is the engine's figure over the candidate's within one round, so that a busy machine is busy for both.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qwen3vl_edge.tools.dev.bench.measurement import rotated
from qwen3vl_edge.tools.dev.load.engine.batch import Batch, Candidate
from qwen3vl_edge.tools.dev.load.engine.engines import ENGINE
from qwen3vl_edge.tools.dev.load.engine.memory import peak_memory
from qwen3vl_edge.tools.dev.load.figures import Run, decode_tokens_per_second, gaps, percentiles

ReportRow = Callable[[Mapping[str, Any]], None]


@dataclass
class _Measured:
    """A candidate's runs on one batch, with None for a round in which it failed."""

    candidate: Candidate
    runs: list[Run] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    failed: str = ""


def bench_batch(
    candidates: Sequence[Candidate], batch: Batch, rounds: int, device: torch.device, report: ReportRow
) -> None:
    """Measure each candidate and report a row for it; one that cannot run says why.

    The first run of each is not counted: what is made lazily is made there, and its peak of memory is measured.
    """
    measured = [_Measured(candidate) for candidate in candidates]
    try:
        for item in measured:
            _guarded(item, lambda item=item: _warm_up(item, batch, device))  # type: ignore[misc]
        for number in range(rounds):
            for item in rotated(measured, number):
                _guarded(item, lambda item=item: item.runs.append(_run(item.candidate, batch)))  # type: ignore[misc]
    finally:
        for candidate in candidates:
            candidate.close()
        gc.collect()
    engine = next((item for item in measured if item.candidate.name == ENGINE and not item.failed), None)
    for item in measured:
        report(_row(item, batch, engine))


def _guarded(item: _Measured, work: Callable[[], None]) -> None:
    """A candidate that fails, such as for want of memory, leaves the others and is not tried again."""
    if item.failed:
        return
    try:
        work()
    except Exception as error:  # libraries raise what they like
        item.failed = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"[:400]
        item.candidate.close()


def _warm_up(item: _Measured, batch: Batch, device: torch.device) -> None:
    found: dict[str, int] = {}
    with peak_memory(device, found):
        item.candidate.prepare(batch)
        _run(item.candidate, batch)
    if item.candidate.in_process:
        item.memory = found


def _run(candidate: Candidate, batch: Batch) -> Run:
    """One run, with every token that was asked for.

    Raises:
        RuntimeError: an answer was shorter or refused, so that rates would not compare.
    """
    run = candidate.run(batch)
    lengths = {len(sample.tokens) for sample in run.samples}
    if lengths != {batch.new_tokens} or len(run.samples) != batch.rows:
        refused = next((sample.refused for sample in run.samples if sample.refused), "")
        raise RuntimeError(f"answers of {sorted(lengths)} tokens, expected {batch.new_tokens} {refused}")
    return run


def _row(item: _Measured, batch: Batch, engine: _Measured | None) -> dict[str, Any]:
    row = {"candidate": item.candidate.name, "batch": batch.rows}
    if item.failed:
        return {**row, "failed": item.failed}
    runs = item.runs
    decode = [rate for run in runs if (rate := decode_tokens_per_second(run)) is not None]
    row |= {
        "tokens_per_second": round(statistics.median(run.tokens_per_second for run in runs), 2),
        "decode_tokens_per_second": round(statistics.median(decode), 2) if decode else None,
        "step_seconds": batch.rows / statistics.median(decode) if decode else None,
        "between_tokens_s": percentiles([gap for run in runs for gap in gaps(run)]),
        **item.memory,
    }
    if item.candidate.prefills:
        row["first_token_s"] = percentiles([sample.tokens[0] - sample.due for run in runs for sample in run.samples])
    if engine is not None and item is not engine:
        row["engine_over_this"] = _ratios(engine.runs, item)
    return row


def _ratios(engine: Sequence[Run], other: _Measured) -> dict[str, Any]:
    """Of whole runs where both begin with the prompts, and of decode alone.

    Returns:
        For each the median of the rounds' ratios, the rounds, and the ratio of the best rounds: on a machine that
        others use too, what disturbs a round only ever slows it.
    """
    pairs = list(zip(engine, other.runs, strict=True))
    rates = [(decode_tokens_per_second(one), decode_tokens_per_second(run)) for one, run in pairs]
    found = {"whole": [(one.tokens_per_second, run.tokens_per_second) for one, run in pairs]}
    if not other.candidate.prefills:
        found = {}
    found["decode"] = [(one, run) for one, run in rates if one is not None and run is not None]
    return {name: _ratio(values) for name, values in found.items() if values}


def _ratio(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    values = [one / other for one, other in pairs]
    best = max(one for one, _ in pairs) / max(other for _, other in pairs)
    return {
        "median": round(statistics.median(values), 4),
        "best": round(best, 4),
        "rounds": [round(value, 4) for value in values],
    }
