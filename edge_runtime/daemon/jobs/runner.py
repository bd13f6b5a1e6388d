"""Sends spooled jobs to the server, the oldest first, until each is answered, refused or too old."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.http.errors import as_contract_error
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.edge_runtime.client.async_client import NOT_LET_IN
from qwen3vl_edge.edge_runtime.daemon.chat import Progress, completion, generate
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Claimed, Spool, SpoolDiskError
from qwen3vl_edge.edge_runtime.daemon.jobs.spooled_prompt import from_disk
from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import Upstream

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60.0
LONGEST_LOOK_SECONDS = 10.0  # between polls of an unreachable server
NOTHING_TO_DO_SECONDS = 60.0
# With these the same request may be answered later: a token that was renewed on one side is soon on the other.
_LATER = frozenset({*NOT_LET_IN, 408, 429})
logger = logging.getLogger("edge")


class JobRunner:
    """Runs from `start` to `stop`, in the event loop. A job that was being sent at `stop` waits for the next start."""

    def __init__(
        self, spool: Spool, upstream: Upstream, config: DaemonConfig, bases: Callable[[], Bases] = lambda: NO_BASES
    ) -> None:
        self._spool = spool
        self._bases = bases
        self._upstream = upstream
        self._config = config
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._attempts: dict[str, asyncio.Task[dict[str, Any]]] = {}

    def start(self) -> None:
        """Start to send."""
        workers = [self._work() for _ in range(self._config.job_concurrency)]
        self._tasks = [asyncio.create_task(task) for task in (self._housekeep(), *workers)]

    async def stop(self) -> None:
        """Stop; jobs that are being sent stay in the spool."""
        for task in (*self._tasks, *self._attempts.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._attempts.values(), return_exceptions=True)

    def wake(self) -> None:
        """There is a new job, or one that waits again."""
        woken, self._wake = self._wake, asyncio.Event()
        woken.set()

    def cancel(self, job_id: str) -> None:
        """The job is gone from the spool: end its attempt."""
        if (attempt := self._attempts.get(job_id)) is not None:
            attempt.cancel()
        self._upstream.forget(job_id)

    async def _work(self) -> None:
        while True:
            woken = self._wake  # taken before the query, so that a job added during it wakes this worker
            try:
                due = await self._spool.next_due()
                if due is None or due > 0:
                    await self._sleep(due, woken)
                    continue
                await self._until_server_is_ready()
                if (claimed := await self._spool.claim()) is not None:
                    await self._run(claimed)
                else:
                    await self._sleep(0.1, woken)  # expired, or another worker was faster
            except SpoolDiskError as error:  # accepted jobs are still on the disk
                logger.warning("%s", error)
                await asyncio.sleep(random.uniform(1, 10))

    async def _run(self, claimed: Claimed) -> None:
        job = claimed.job
        attempt = self._attempts[job.id] = asyncio.create_task(self._attempt(claimed))
        try:
            await asyncio.wait({attempt})
        finally:
            attempt.cancel()
            del self._attempts[job.id]
        if attempt.cancelled():  # removed by a client
            return
        if (failure := attempt.exception()) is None:
            await self._record(job.id, answer=attempt.result())
            self._upstream.forget(job.id)  # only now: before, the server had the only copy
            return
        error = as_contract_error(failure, job.id)
        if error is failure and (error.status >= 500 or error.status in _LATER):
            longest = min(FIRST_WAIT_SECONDS * 2 ** min(job.attempts, 20), LONGEST_WAIT_SECONDS)
            wait = max(random.uniform(0, longest), getattr(error, "retry_after", 0))
            if error.status in NOT_LET_IN:
                logger.warning("job %s waits: %s", job.id, error)
            await self._committed(job.id, partial(self._spool.postpone, job.id, wait))
            self.wake()  # for the housekeeper: it waits again, and may have expired meanwhile
            return
        await self._record(job.id, error=error.to_openai()["error"])

    async def _attempt(self, claimed: Claimed) -> dict[str, Any]:
        if not claimed.intact:
            raise WireError("the job was altered on disk", field="body", remedy="Send it again, as a new job.")
        prompt = from_disk(claimed.prompt, claimed.body, self._bases())
        progress = Progress()
        seconds = max(0.1, min(self._config.deadline_s, claimed.job.deadline - time.time()))
        pieces = generate(self._upstream, prompt.encoded, prompt.chat, seconds, progress, keep=True)
        async with aclosing(pieces):
            async for _ in pieces:
                pass
        return completion(prompt.encoded, progress)

    async def _record(self, job_id: str, **how: Any) -> None:
        """Commit how a job ended."""
        await self._committed(job_id, partial(self._spool.finish, job_id, **how))

    async def _committed(self, job_id: str, change: Callable[[], Awaitable[object]]) -> None:
        """Commit a change as soon as the disk lets it; a job must not stay marked as running."""
        while True:
            try:
                await change()
                return
            except SpoolDiskError as error:
                logger.warning("job %s cannot be recorded yet: %s", job_id, error)
                await asyncio.sleep(random.uniform(1, 10))

    async def _until_server_is_ready(self) -> None:
        """While it is down, jobs keep their order and use up no attempts."""
        wait = FIRST_WAIT_SECONDS
        while await self._upstream.ready() is None:
            await asyncio.sleep(random.uniform(wait / 2, wait))
            wait = min(wait * 2, LONGEST_LOOK_SECONDS)

    async def _housekeep(self) -> None:
        while True:
            woken = self._wake
            try:
                await self._sleep(await self._spool.sweep(self._config.job_keep_s), woken)
            except SpoolDiskError as error:
                logger.warning("%s", error)
                await asyncio.sleep(NOTHING_TO_DO_SECONDS)

    async def _sleep(self, seconds: float | None, woken: asyncio.Event) -> None:
        """Wait until then, or until a job is added."""
        limit = NOTHING_TO_DO_SECONDS if seconds is None else min(seconds + 0.01, NOTHING_TO_DO_SECONDS)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(woken.wait(), limit)
