"""Sends spooled jobs to the server, the oldest first, until each is answered, refused or too old.

The workers are watched: one that fails by a fault of ours is started again, and `failure` tells of it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from qwen3vl_edge.contract.bundle.model_hash import model_mismatch
from qwen3vl_edge.contract.errors import ContractError, ModelMismatchError
from qwen3vl_edge.contract.http.errors import as_contract_error
from qwen3vl_edge.contract.wire.basis import NO_BASES, Bases
from qwen3vl_edge.edge_runtime.client.async_client import NOT_LET_IN
from qwen3vl_edge.edge_runtime.daemon.chat import Progress, completion, generate
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.jobs.job import Claimed
from qwen3vl_edge.edge_runtime.daemon.jobs.spool import Spool, SpoolDamagedError, SpoolDiskError
from qwen3vl_edge.edge_runtime.daemon.jobs.spooled_prompt import from_disk
from qwen3vl_edge.edge_runtime.daemon.upstreams.openai_server import ModelNotServedError
from qwen3vl_edge.edge_runtime.daemon.upstreams.protocol import Upstream

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60.0
LONGEST_LOOK_SECONDS = 10.0  # between polls of an unreachable server
NOTHING_TO_DO_SECONDS = 60.0
# With these the same request may be answered later, by a server that is put right or one that has its address again: a
# token was renewed on one side only, another model or release is served, or something else listens there.
_OTHER_SERVER = frozenset({*NOT_LET_IN, 404, 405})
_OTHER_MODEL = frozenset({ModelMismatchError.code, ModelNotServedError.code})
_LATER = frozenset({408, 429})
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
        self._failures: dict[str, str] = {}
        self._stopping = False
        self._attempts: dict[str, asyncio.Task[dict[str, Any]]] = {}

    def start(self) -> None:
        """Start to send."""
        for number in range(self._config.job_concurrency):
            self._watch(f"worker {number}", partial(self._work, f"worker {number}"))
        self._watch("sweeper", self._sweep)

    @property
    def failure(self) -> str | None:
        """Which worker has failed and does not run again yet, and by what error; None while all are well."""
        return "; ".join(f"{name}: {why}" for name, why in self._failures.items()) or None

    async def stop(self) -> None:
        """Stop; jobs that are being sent stay in the spool."""
        self._stopping = True
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

    def _watch(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        def ended(_: asyncio.Task[None]) -> None:
            if not self._stopping:  # cancelled by somebody else
                logger.error("the %s of jobs has ended", name)
                self._failures[name] = "it has ended"

        task = asyncio.create_task(self._watched(name, work))
        task.add_done_callback(ended)
        self._tasks.append(task)

    async def _watched(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do this over and over, whatever it raises."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                await work()
            except SpoolDiskError as error:  # accepted jobs are still on the disk
                logger.warning("%s", error)
                if isinstance(error, SpoolDamagedError):
                    self._failures[name] = error.message
                await asyncio.sleep(random.uniform(1, 10))
                continue
            except Exception as error:
                logger.exception("the %s of jobs failed and starts again in %.1f s", name, wait)
                self._failures[name] = type(error).__name__
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
                continue
            wait = FIRST_WAIT_SECONDS
            self._failures.pop(name, None)

    async def _work(self, name: str) -> None:
        """Send one job, or wait for one."""
        woken = self._wake  # taken before the query, so that a job added during it wakes this worker
        due = await self._spool.next_due()
        if due is None or due > 0:
            self._failures.pop(name, None)
            await self._sleep(due, woken)
            return
        server = await self._ready_server(name)
        if (claimed := await self._spool.claim()) is None:
            await self._sleep(0.1, woken)  # expired, or another worker was faster
            return
        try:
            await self._run(claimed, server)
        except Exception as error:  # a fault of ours: the job fails alone
            failed = as_contract_error(error, claimed.job.id)
            await self._record(claimed.job.id, error=failed.to_openai()["error"])

    async def _run(self, claimed: Claimed, server: dict[str, Any]) -> None:
        job = claimed.job
        attempt = self._attempts[job.id] = asyncio.create_task(self._attempt(claimed, server))
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
        if error is failure and _may_be_answered_later(error):
            longest = min(FIRST_WAIT_SECONDS * 2 ** min(job.attempts, 20), LONGEST_WAIT_SECONDS)
            wait = max(random.uniform(0, longest), getattr(error, "retry_after", 0))
            if error.status not in _LATER and error.status < 500:
                logger.warning("job %s waits: %s", job.id, error)
            await self._committed(job.id, partial(self._spool.postpone, job.id, wait))
            self.wake()  # for the housekeeper: it waits again, and may have expired meanwhile
            return
        await self._record(job.id, error=error.to_openai()["error"])

    async def _attempt(self, claimed: Claimed, server: dict[str, Any]) -> dict[str, Any]:
        prompt = from_disk(claimed.prompt, claimed.body, self._bases())
        made_for, served = prompt.encoded.request.model_hash, server.get("model_hash")
        if made_for and served and made_for != served:  # known without sending megabytes
            raise model_mismatch(
                "the server runs another model than the job was encoded for", "model_hash", made_for, served
            )
        progress = Progress()
        seconds = max(0.1, min(self._config.deadline_s, claimed.seconds_left))
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

    async def _ready_server(self, name: str) -> dict[str, Any]:
        """The server's own description. While it is down, jobs keep their order and use up no attempts."""
        wait = FIRST_WAIT_SECONDS
        while (server := await self._upstream.ready()) is None:
            self._failures.pop(name, None)
            await asyncio.sleep(random.uniform(wait / 2, wait))
            wait = min(wait * 2, LONGEST_LOOK_SECONDS)
        return server

    async def _sweep(self) -> None:
        woken = self._wake
        left = await self._spool.sweep(self._config.job_keep_s)
        self._failures.pop("sweeper", None)
        await self._sleep(left, woken)

    async def _sleep(self, seconds: float | None, woken: asyncio.Event) -> None:
        """Wait until then, or until a job is added."""
        limit = NOTHING_TO_DO_SECONDS if seconds is None else min(seconds + 0.01, NOTHING_TO_DO_SECONDS)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(woken.wait(), limit)


def _may_be_answered_later(error: ContractError) -> bool:
    return error.status >= 500 or error.status in _LATER | _OTHER_SERVER or error.code in _OTHER_MODEL
