"""Run an attack, and measure what it cost the process under attack and an honest client beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from qwen3vl_edge.tools.dev.attack.attack import Attack
from qwen3vl_edge.tools.dev.attack.books import disagreements, read_books
from qwen3vl_edge.tools.dev.attack.honest import honest_client
from qwen3vl_edge.tools.dev.attack.target import MIB, Target

RECOVERY_SECONDS = 30.0
SETTLED_MIB = 16  # allocators keep a little
POOLED_THREADS = 8  # that pools keep for the next work


@dataclass(frozen=True)
class Cost:
    """What an attack cost.

    Attributes:
        statuses: how many requests were answered with which status; 0 where the connection was closed.
        request_bytes: of its largest request.
        peak_mib: resident memory above the steady state, at its most.
        cpu_s: CPU seconds of a request, the honest client's share included.
        p99_ms, longest_ms: of the honest client's `/healthz`.
        failures: of the honest client's `/healthz`.
        answers: how often the honest client's question was answered, always the same.
        answer_s: the longest it waited for that.
        kept_mib: memory above the steady state when it ended, or RECOVERY_SECONDS later if it stayed.
        kept_threads: threads more than before, likewise.
        disagreements: of /metrics and the audit log, with each other and with the answers.
    """

    name: str
    statuses: dict[int, int]
    request_bytes: int
    peak_mib: float
    cpu_s: float
    p99_ms: float
    longest_ms: float
    failures: int
    answers: int
    answer_s: float
    kept_mib: float
    kept_threads: int
    disagreements: list[str]


def measure(attack: Attack, target: Target, times: int, at_once: int, wait: bool = True) -> Cost:
    """Attack a target. What is admitted is sent once before: what an encoder takes for it, it keeps.

    Args:
        wait: wait for memory and threads to come back.

    Raises:
        AssertionError: the honest client's answer changed.
    """
    if attack.admitted:
        attack.send(target, 1, 1)
    books = read_books(target)
    with honest_client(target.url) as ended:
        steady, threads = target.resident, target.threads
        target.reset_peak()
        cpu = target.cpu_seconds
        outcome = attack.send(target, times, at_once)
        spent, peak = target.cpu_seconds - cpu, target.peak
        experience = ended()
    if len(set(experience.answers)) != 1:
        raise AssertionError(f"{attack.name}: the honest client's answers differ: {set(experience.answers)}")
    found = disagreements(target, books, outcome.statuses if attack.reaches_app else {})
    if wait:
        _wait_for_recovery(target, steady, threads)
    return Cost(
        name=attack.name,
        statuses=dict(sorted(outcome.statuses.items())),
        request_bytes=outcome.request_bytes,
        peak_mib=round(max(0, peak - steady) / MIB, 1),
        cpu_s=round(spent / times, 3),
        p99_ms=round(experience.percentile(0.99) * 1e3, 1),
        longest_ms=round(max(experience.waits) * 1e3, 1),
        failures=experience.failures,
        answers=len(experience.answers),
        answer_s=round(max(experience.answer_waits), 2),
        kept_mib=round(max(0, target.resident - steady) / MIB, 1),
        kept_threads=max(0, target.threads - threads),
        disagreements=found,
    )


def _wait_for_recovery(target: Target, steady: int, threads: int) -> None:
    ends, most = time.monotonic() + RECOVERY_SECONDS, threads + POOLED_THREADS
    while time.monotonic() < ends and (target.resident > steady + SETTLED_MIB * MIB or target.threads > most):
        time.sleep(0.1)
