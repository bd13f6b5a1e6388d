"""Run an attack, and measure what it cost the process under attack and an honest client beside it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from qwen3vl_edge.tools.dev.attack.attack import Attack, Outcome
from qwen3vl_edge.tools.dev.attack.books import disagreements, read_books
from qwen3vl_edge.tools.dev.attack.honest import Experience, ask_once, honest_client
from qwen3vl_edge.tools.dev.attack.target import MIB, Target

RECOVERY_SECONDS = 30.0
SETTLED_MIB = 16  # allocators keep a little
LOWEST_PRIORITY = 19
POOLED_THREADS = 11  # of the daemon: 8 look up names, 2 open pictures, 1 keeps the spool


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


def measure(attack: Attack, target: Target, times: int, at_once: int, seconds: float = 0.0, wait: bool = True) -> Cost:
    """Attack a target. What is admitted is sent before, so many at once: what an encoder takes for it, it keeps.

    Args:
        times: requests; again so many until `seconds` are over.
        wait: wait for memory and threads to come back.

    Raises:
        AssertionError: the honest client's answer changed.
    """
    if attack.admitted:
        attack.send(target, at_once, at_once)
    books = read_books(target)
    with honest_client(target.url) as ended:
        steady, threads = target.resident, target.threads
        target.reset_peak()
        cpu = target.cpu_seconds
        outcome = _send_politely(attack, target, times, at_once, seconds)
        spent, peak = target.cpu_seconds - cpu, target.peak
        experience = ended()
    if len(set(experience.answers)) != 1:
        raise AssertionError(f"{attack.name}: the honest client's answers differ: {set(experience.answers)}")
    found = disagreements(target, books, outcome.statuses if attack.is_counted else {})
    if wait:
        _wait_for_recovery(target, steady, threads)
    return Cost(
        name=attack.name,
        statuses=dict(sorted(outcome.statuses.items())),
        request_bytes=outcome.request_bytes,
        peak_mib=round(max(0, peak - steady) / MIB, 1),
        cpu_s=round(spent / outcome.times, 3),
        p99_ms=round(experience.percentile(0.99) * 1e3, 1),
        longest_ms=round(max(experience.waits) * 1e3, 1),
        failures=experience.failures,
        answers=len(experience.answers),
        answer_s=round(max(experience.answer_waits), 2),
        kept_mib=round(max(0, target.resident - steady) / MIB, 1),
        kept_threads=max(0, target.threads - threads),
        disagreements=found,
    )


def _send_politely(attack: Attack, target: Target, times: int, at_once: int, seconds: float) -> Outcome:
    """Send from threads of the lowest priority: an attacker has a machine of its own, and takes none of the target's.

    On Linux a priority is a thread's own, and inherited by the threads that it starts (setpriority(2), "Bugs").
    """

    def send() -> Outcome:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        ends, outcome = time.monotonic() + seconds, Outcome()
        while not outcome.times or time.monotonic() < ends:
            sent = attack.send(target, times, at_once)
            outcome.times += times
            outcome.statuses.update(sent.statuses)
            outcome.request_bytes = sent.request_bytes
        return outcome

    with ThreadPoolExecutor(1) as attacker:
        return attacker.submit(send).result()


def _wait_for_recovery(target: Target, steady: int, threads: int) -> None:
    """While a client asks a question a second: a pool ends its idle threads as it is used."""
    ends, most = time.monotonic() + RECOVERY_SECONDS, threads + POOLED_THREADS
    while time.monotonic() < ends and (target.resident > steady + SETTLED_MIB * MIB or target.threads > most):
        ask_once(target.url, Experience())
        time.sleep(1.0)
