"""Jobs on disk: accepted jobs survive kill -9 and power loss, and each answer is recorded once.

One thread owns the only connection and runs all calls in turn; the file is locked against a second daemon.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.edge_runtime.daemon.jobs.job import Claimed, Counts, Job, NewJob
from qwen3vl_edge.edge_runtime.daemon.jobs.job_clock import MachineClocks, machine_clocks
from qwen3vl_edge.edge_runtime.daemon.jobs.job_rows import Content
from qwen3vl_edge.edge_runtime.daemon.jobs.job_store import JobStore

T = TypeVar("T")


class SpoolDiskError(ContractError):
    """The disk refused a read or a write, and nothing was changed."""

    status = 507
    code = "spool_disk"


class SpoolDamagedError(SpoolDiskError):
    """The file is damaged, in more than one job."""


class Spool:
    """The file, open; every method but `close` is awaited and runs in the spool's own thread.

    A job whose row or content is not as it was written is failed when it is read, and the others go on. A row that can
    be neither read nor written is left out, and counted.

    Args:
        path: made if missing, readable by this user alone.
        max_bytes: of requests and answers together. max_waiting: jobs that wait or run.
        clocks: the machine's.

    Raises:
        InputError: the file cannot be used: corrupt, of another program, or open in another daemon.
    """

    def __init__(self, path: Path, max_bytes: int, max_waiting: int, clocks: MachineClocks | None = None) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        opening = partial(JobStore, path, max_bytes, max_waiting, clocks or machine_clocks())
        try:
            self._store: JobStore = self._thread.submit(opening).result()
        except BaseException:
            self._thread.shutdown()
            raise

    @property
    def counts(self) -> Counts:
        """As of the last commit."""
        return self._store.counts

    @property
    def unreadable(self) -> int:
        """Jobs that are left out."""
        return len(self._store.left_out)

    async def find(self, key: str, request_hash: str) -> Job | None:
        """The job that was accepted under this key.

        Raises:
            KeyReusedError: it was another request.
        """
        return await self._call(lambda: self._store.find(key, request_hash))

    async def add(self, new: NewJob) -> Job:
        """Store a job; on return it is on the disk. The same key gives the existing job.

        Raises:
            KeyReusedError, SpoolFullError: nothing was written.
            SpoolDiskError: nothing was written.
        """
        return await self._call(lambda: self._store.add(new))

    def check_room(self) -> None:
        """Raises: SpoolFullError: one more would exceed the limits."""
        self._store.check_room(0)

    async def get(self, job_id: str) -> Job | None:
        """One job, with its answer or error."""
        return await self._call(lambda: self._store.get(job_id))

    async def newest(self, limit: int) -> list[Job]:
        """The newest first, without their answers and errors."""
        return await self._call(lambda: self._store.newest(limit))

    async def remove(self, job_id: str) -> bool:
        """Whether there was such a job; there is none now."""
        return await self._call(lambda: self._store.remove(job_id))

    async def claim(self) -> Claimed | None:
        """The oldest job that is due, marked as running and its attempt counted; None if there is none."""
        return await self._call(self._store.claim)

    async def postpone(self, job_id: str, seconds: float) -> None:
        """A running job waits again, at least so long."""
        await self._call(lambda: self._store.postpone(job_id, seconds))

    async def finish(
        self, job_id: str, *, answer: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> bool:
        """Record how a running job ended; False if it is no longer running, and nothing was recorded."""
        status = "failed" if answer is None else "done"
        content = Content.ended(answer if answer is not None else error or {})
        return await self._call(lambda: self._store.finish(job_id, status, content))

    async def sweep(self, keep_s: float) -> float | None:
        """Mark expired jobs, remove ended ones past their retention; seconds until the next waiting job expires.

        A few hundred at once: 0 if there are more. The clock is saved now and then.
        """
        return await self._call(lambda: self._store.sweep(keep_s))

    async def next_due(self) -> float | None:
        """Seconds until a waiting job is due; None if none waits."""
        return await self._call(lambda: self._store.seconds_until("due"))

    def close(self) -> None:
        """Save the clock and close the file; jobs that run wait again after the next start."""
        self._thread.submit(self._store.close).result()
        self._thread.shutdown()

    async def _call(self, work: Callable[[], T]) -> T:
        """`work` in the spool's thread. It is shielded: a caller that stops waiting does not stop a commit half-way."""

        def run() -> T:
            try:
                return work()
            except sqlite3.OperationalError as error:
                raise SpoolDiskError(
                    f"the spool cannot be written or read ({error})",
                    field="spool",
                    remedy="Free space on its disk.",
                ) from None
            except sqlite3.Error as error:
                raise SpoolDamagedError(
                    f"the spool is damaged ({error})", field="spool", remedy="Restart the daemon, which checks it."
                ) from None

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, run))
