"""What an attack is, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from qwen3vl_edge.tools.dev.attack.target import Target

CLOSED = 0  # the connection was closed without a status


@dataclass(frozen=True)
class Shot:
    """One HTTP request of an attack."""

    path: str
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass
class Outcome:
    """What became of an attack's requests.

    Attributes:
        statuses: how many were answered with which status; CLOSED where there was none.
        request_bytes: of the largest one.
        times: how often the attack was sent.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    request_bytes: int = 0
    times: int = 0


@dataclass(frozen=True)
class Attack:
    """One case of `docs/guides/server/security.md`.

    Attributes:
        name: of its row there.
        against: "server" or "daemon".
        send: sends it so many times, and so many at once; returns what became of it.
        settings: of the process under attack, beside the defaults.
        is_counted: its answers are those of /metrics and the audit log; a connection has none, and one that is
            refused within its body counts as a client that left.
        admitted: it is within the limits, and what it costs is the work that it asks for.
    """

    name: str
    against: str
    send: Callable[[Target, int, int], Outcome]
    settings: dict[str, Any] = field(default_factory=dict)
    is_counted: bool = True
    admitted: bool = False


def volley(make: Callable[[Target], Shot]) -> Callable[[Target, int, int], Outcome]:
    """An attack of equal requests."""

    def send(target: Target, times: int, at_once: int) -> Outcome:
        shot = make(target)
        headers = {"Content-Type": shot.content_type, **shot.headers}
        outcome = Outcome(request_bytes=len(shot.body))

        def fire(_: int) -> int:
            try:
                with httpx.Client(timeout=120) as http:
                    url = f"{target.url}{shot.path}"
                    return http.request(shot.method, url, content=shot.body, headers=headers).status_code
            except httpx.HTTPError:
                return CLOSED

        with ThreadPoolExecutor(at_once) as pool:
            outcome.statuses.update(pool.map(fire, range(times)))
        return outcome

    return send
