"""What a process under attack wrote down: /metrics and the audit log agree with each other and with the answers."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from qwen3vl_edge.tools.dev.attack.target import Target

SETTLING_SECONDS = 10.0
_LINE_SECONDS = 0.05  # until the line of an answer that has arrived is written
_REQUESTS = re.compile(r"^qwen3vl_edge(?:_device)?_requests_total\{.*status=\"(\d+)\"\} (\S+)$", re.M)


@dataclass(frozen=True)
class Books:
    """Requests by status.

    Attributes:
        counted: in /metrics.
        audited: in the audit log; None where there is none.
    """

    counted: Counter[int]
    audited: Counter[int] | None


def read_books(target: Target) -> Books:
    """The books as they are now. Each reading is a request itself, the same one more in both.

    Raises:
        ValueError: a line of the audit log is not JSON.
    """
    counted: Counter[int] = Counter()
    for status, count in _REQUESTS.findall(httpx.get(f"{target.url}/metrics", timeout=60).text):
        counted[int(status)] += int(float(count))
    if target.audit is None:
        return Books(counted, None)
    time.sleep(_LINE_SECONDS)
    return Books(counted, Counter(json.loads(line)["status"] for line in target.audit.read_text().splitlines()))


def disagreements(target: Target, before: Books, answered: Mapping[int, int]) -> list[str]:
    """What does not agree once everything is written; empty as soon as all does.

    Args:
        answered: at least so many requests were answered with each status since then.
    """
    ends = time.monotonic() + SETTLING_SECONDS
    while (found := _compared(before, read_books(target), answered)) and time.monotonic() < ends:
        time.sleep(0.2)
    return found


def _compared(before: Books, after: Books, answered: Mapping[int, int]) -> list[str]:
    counted = after.counted - before.counted
    found = [
        f"{count} requests were answered {status}, /metrics counts {counted[status]}"
        for status, count in answered.items()
        if counted[status] < count
    ]
    if after.audited is not None and before.audited is not None:
        audited = after.audited - before.audited
        if audited != counted:
            found.append(f"/metrics counts {dict(counted)}, the audit log has {dict(audited)}")
    return found
