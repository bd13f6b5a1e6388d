"""Jobs on disk: accepted jobs survive kill -9 and power loss, and each answer is recorded once.

SQLite in WAL mode with synchronous=FULL: a commit returns once its bytes are on the disk, and is atomic. One thread
owns the only connection and runs all calls in turn; the file is locked against a second daemon.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qwen3vl_edge.contract.errors import (
    ContractError,
    InputError,
    KeyReusedError,
    LimitError,
    ServerUnavailableError,
)

T = TypeVar("T")
STATUSES = ("waiting", "running", "done", "failed", "expired")
SCHEMA_VERSION = 1
RETRY_AFTER_SECONDS = 30
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    request_hash TEXT NOT NULL,
    status TEXT NOT NULL,
    created REAL NOT NULL,
    deadline REAL NOT NULL,
    due REAL NOT NULL,
    finished REAL,
    attempts INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    body BLOB,
    body_hash TEXT NOT NULL,
    answer TEXT,
    error TEXT
);
CREATE INDEX jobs_by_status ON jobs (status, number);
"""
_EXPIRED = json.dumps(
    ServerUnavailableError(
        "the job was not answered before it expired", field="job_deadline_s", remedy="Send it again, as a new job."
    ).to_openai()["error"]
)


class SpoolFullError(LimitError):
    """The limit of jobs or bytes is reached."""

    status = 429
    code = "spool_full"
    retry_after = RETRY_AFTER_SECONDS


class SpoolDiskError(ContractError):
    """The disk refused a read or a write, and nothing was changed."""

    status = 507
    code = "spool_disk"


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
    """A job's state; times in seconds since 1970."""

    id: str
    status: str
    created: float
    deadline: float
    attempts: int
    answer: dict[str, Any] | None
    error: dict[str, Any] | None


@dataclass(frozen=True)
class Claimed:
    """A job to send now."""

    job: Job
    prompt: dict[str, Any]
    body: bytes
    intact: bool


@dataclass(frozen=True)
class Counts:
    """Jobs by status, and the bytes of them all."""

    jobs: dict[str, int]
    bytes: int


class Spool:
    """The file, open; every method but `close` is awaited and runs in the spool's own thread.

    Args:
        path: made if missing, readable by this user alone.
        max_bytes: of requests and answers together. max_waiting: jobs that wait or run.

    Raises:
        InputError: the file cannot be used: corrupt, of another program, or open in another daemon.
    """

    def __init__(self, path: Path, max_bytes: int, max_waiting: int) -> None:
        self.path = path
        self.counts = Counts({}, 0)
        self._max_bytes, self._max_waiting = max_bytes, max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        try:
            self._database: sqlite3.Connection = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def find(self, key: str, request_hash: str) -> Job | None:
        """The job that was accepted under this key.

        Raises:
            KeyReusedError: it was another request.
        """
        return await self._call(lambda: self._find(key, request_hash))

    async def add(self, new: NewJob) -> Job:
        """Store a job; on return it is on the disk. The same key gives the existing job.

        Raises:
            KeyReusedError, SpoolFullError: nothing was written.
            SpoolDiskError: nothing was written.
        """
        return await self._call(lambda: self._add(new))

    def check_room(self) -> None:
        """Raises: SpoolFullError: one more would exceed the limits."""
        self._room(self.counts, 0)

    async def get(self, job_id: str) -> Job | None:
        """One job."""
        return await self._call(lambda: self._one("SELECT * FROM jobs WHERE id = ?", job_id))

    async def newest(self, limit: int) -> list[Job]:
        """The newest first."""
        query = "SELECT * FROM jobs ORDER BY number DESC LIMIT ?"
        return await self._call(lambda: [_job(row) for row in self._database.execute(query, (limit,))])

    async def remove(self, job_id: str) -> bool:
        """Whether there was such a job; there is none now."""
        return await self._call(lambda: self._write("DELETE FROM jobs WHERE id = ?", job_id) > 0)

    async def claim(self) -> Claimed | None:
        """The oldest job that is due, marked as running and its attempt counted; None if there is none."""
        return await self._call(self._claim)

    async def postpone(self, job_id: str, seconds: float) -> None:
        """A running job waits again, at least so long."""
        query = "UPDATE jobs SET status = 'waiting', due = ? WHERE id = ? AND status = 'running'"
        await self._call(lambda: self._write(query, time.time() + seconds, job_id))

    async def finish(
        self, job_id: str, *, answer: dict[str, Any] | None = None, error: dict[str, Any] | None = None
    ) -> bool:
        """Record how a running job ended; False if it is no longer running, and nothing was recorded."""
        result = json.dumps(answer if answer is not None else error, ensure_ascii=False)
        query = (
            f"UPDATE jobs SET status = ?, {'answer' if answer is not None else 'error'} = ?, finished = ?, bytes = ?, "
            "body = NULL, prompt = '{}' WHERE id = ? AND status = 'running'"
        )
        status = "done" if answer is not None else "failed"
        values = (status, result, time.time(), len(result.encode()), job_id)
        return await self._call(lambda: self._write(query, *values) > 0)

    async def sweep(self, keep_s: float) -> float | None:
        """Mark expired jobs, remove ended ones past their retention; seconds until the next waiting job expires."""
        return await self._call(lambda: self._sweep(keep_s))

    async def next_due(self) -> float | None:
        """Seconds until a waiting job is due; None if none waits."""
        return await self._call(lambda: self._seconds_until("due"))

    def close(self) -> None:
        """Close the file; jobs that run wait again after the next start."""
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    async def _call(self, work: Callable[[], T]) -> T:
        """`work` in the spool's thread. It is shielded: a caller that stops waiting does not stop a commit half-way."""

        def run() -> T:
            try:
                return work()
            except sqlite3.Error as error:
                raise SpoolDiskError(
                    f"the spool cannot be written or read ({error})",
                    field="spool",
                    remedy="Free space on its disk.",
                ) from None

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, run))

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(self.path, isolation_level=None, timeout=1.0)
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"spool {self.path} cannot be opened ({error})", field="spool") from None
        try:
            self._prepare(database)
        except sqlite3.OperationalError as error:
            database.close()
            locked = "locked" in str(error)
            what = "is open in another daemon" if locked else f"cannot be used ({error})"
            raise InputError(f"spool {self.path} {what}", field="spool") from None
        except sqlite3.DatabaseError as error:
            database.close()
            raise self._damaged(str(error)) from None
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
        database.execute("PRAGMA secure_delete = OFF")
        check = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if check != "ok":
            raise self._damaged(check)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.execute("BEGIN IMMEDIATE")
        if version == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise InputError(
                f"{self.path} is no spool of this release",
                field="spool",
                expected=f"version {SCHEMA_VERSION}",
                got=version,
                remedy="Name another file.",
            )
        database.execute("UPDATE jobs SET status = 'waiting', due = 0 WHERE status = 'running'")
        database.execute("COMMIT")
        self.counts = _counts(database)
        _sync_folder(self.path.parent)

    def _damaged(self, how: str) -> InputError:
        return InputError(
            f"spool {self.path} is damaged ({how})",
            field="spool",
            remedy="Nothing was deleted. Move it away together with its -wal file and start again; "
            "`sqlite3 FILE .recover` may read jobs out of it.",
        )

    def _add(self, new: NewJob) -> Job:
        prompt = json.dumps(new.prompt, ensure_ascii=False)
        size = len(new.body) + len(prompt.encode())
        now = time.time()
        with self._transaction():
            if new.key is not None and (existing := self._find(new.key, new.request_hash)) is not None:
                return existing
            self._room(_counts(self._database), size)
            self._database.execute(
                "INSERT INTO jobs (id, key, request_hash, status, created, deadline, due, attempts, bytes, prompt, "
                "body, body_hash) VALUES (?, ?, ?, 'waiting', ?, ?, 0, 0, ?, ?, ?, ?)",
                (new.id, new.key, new.request_hash, now, now + new.lifetime_s, size, prompt, new.body,
                 hashlib.sha256(new.body).hexdigest()),
            )  # fmt: skip
        return Job(new.id, "waiting", now, now + new.lifetime_s, 0, None, None)

    def _room(self, counts: Counts, size: int) -> None:
        waiting = counts.jobs.get("waiting", 0) + counts.jobs.get("running", 0)
        if waiting >= self._max_waiting:
            raise SpoolFullError(
                "the spool is full", field="spool_jobs", expected=f"fewer than {self._max_waiting}", got=waiting
            )
        if counts.bytes + size >= self._max_bytes:
            raise SpoolFullError(
                "the spool is full",
                field="spool_mib",
                expected=f"at most {self._max_bytes} bytes",
                got=counts.bytes + size,
            )

    def _find(self, key: str, request_hash: str) -> Job | None:
        row = self._database.execute("SELECT * FROM jobs WHERE key = ?", (key,)).fetchone()
        if row is not None and row["request_hash"] != request_hash:
            raise KeyReusedError
        return None if row is None else _job(row)

    def _claim(self) -> Claimed | None:
        query = "SELECT * FROM jobs WHERE status = 'waiting' AND due <= ? AND deadline > ? ORDER BY number LIMIT 1"
        now = time.time()
        with self._transaction():
            row = self._database.execute(query, (now, now)).fetchone()
            if row is None:
                return None
            self._database.execute(
                "UPDATE jobs SET status = 'running', attempts = attempts + 1 WHERE id = ?", (row["id"],)
            )
        body = bytes(row["body"])
        intact = hashlib.sha256(body).hexdigest() == row["body_hash"]
        return Claimed(_job(row), json.loads(row["prompt"]), body, intact)

    def _sweep(self, keep_s: float) -> float | None:
        now = time.time()
        with self._transaction():
            self._database.execute(
                "UPDATE jobs SET status = 'expired', finished = ?, error = ?, bytes = ?, body = NULL, prompt = '{}' "
                "WHERE status = 'waiting' AND deadline <= ?",
                (now, _EXPIRED, len(_EXPIRED), now),
            )
            self._database.execute("DELETE FROM jobs WHERE finished <= ?", (now - keep_s,))
        return self._seconds_until("deadline")

    def _seconds_until(self, column: str) -> float | None:
        earliest = self._database.execute(f"SELECT MIN({column}) FROM jobs WHERE status = 'waiting'").fetchone()[0]
        return None if earliest is None else max(0.0, earliest - time.time())

    def _one(self, query: str, *values: object) -> Job | None:
        row = self._database.execute(query, values).fetchone()
        return None if row is None else _job(row)

    def _write(self, query: str, *values: object) -> int:
        with self._transaction():
            return self._database.execute(query, values).rowcount

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of the block is committed, or none of it."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk failed
                self._database.execute("ROLLBACK")
            raise
        self.counts = _counts(self._database)


def _counts(database: sqlite3.Connection) -> Counts:
    rows = database.execute("SELECT status, COUNT(*), SUM(bytes) FROM jobs GROUP BY status").fetchall()
    return Counts({row[0]: row[1] for row in rows}, sum(row[2] for row in rows))


def _job(row: sqlite3.Row) -> Job:
    answer, error = (None if row[name] is None else json.loads(row[name]) for name in ("answer", "error"))
    return Job(row["id"], row["status"], row["created"], row["deadline"], row["attempts"], answer, error)


def _sync_folder(folder: Path) -> None:
    """The new file's name is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
