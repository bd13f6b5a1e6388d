"""Jobs as the daemon sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.errors import LimitError

STATUSES = ("waiting", "running", "done", "failed", "expired")
RETRY_AFTER_SECONDS = 30


class SpoolFullError(LimitError):
    """The limit of jobs or bytes is reached."""

    status = 429
    code = "spool_full"
    retry_after = RETRY_AFTER_SECONDS


@dataclass(frozen=True)
class NewJob:
    """A job to be stored.

    Attributes:
        key: the client's Idempotency-Key. request_hash: sha256 of the client's request.
        prompt: everything else that the answer needs, as JSON; no pixels.
        body: the request as `encode_request` has it, never compressed.
        lifetime_s: seconds from now until it expires.
    """

    id: str
    key: str | None
    request_hash: str
    prompt: dict[str, Any]
    body: bytes
    lifetime_s: float


@dataclass(frozen=True)
class Job:
    """A job's state; times in seconds since 1970, by the wall clock as it is now."""

    id: str
    status: str
    created: float
    deadline: float
    attempts: int
    answer: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class Claimed:
    """A job to send now, within `seconds_left`."""

    job: Job
    prompt: dict[str, Any]
    body: bytes
    seconds_left: float


@dataclass(frozen=True)
class Counts:
    """Jobs by status, and the bytes of them all."""

    jobs: dict[str, int]
    bytes: int

    def changed(self, old: tuple[str, int] | None, new: tuple[str, int] | None) -> Counts:
        """After a job of this status and these bytes has become another; None: it is new, or has gone."""
        jobs, size = dict(self.jobs), self.bytes
        for job, sign in ((old, -1), (new, 1)):
            if job is not None:
                jobs[job[0]] = jobs.get(job[0], 0) + sign
                size += sign * job[1]
        return Counts({status: count for status, count in jobs.items() if count > 0}, max(size, 0))
