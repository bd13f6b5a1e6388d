"""The spool's jobs, in the thread that owns its database.

A call costs by its own job, not by the spool: counts are kept as jobs change, and the next job, the next deadline and
the newest jobs are found by indexes.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError, KeyReusedError, ServerUnavailableError
from qwen3vl_edge.edge_runtime.daemon.jobs.job import Claimed, Counts, Job, NewJob, SpoolFullError
from qwen3vl_edge.edge_runtime.daemon.jobs.job_clock import JobClock, MachineClocks
from qwen3vl_edge.edge_runtime.daemon.jobs.job_rows import (
    ALTERED,
    Content,
    Row,
    delete_job,
    ended,
    failed_as_altered,
    read_clock,
    read_content,
    read_row,
    write_clock,
    write_content,
    write_row,
)
from qwen3vl_edge.edge_runtime.daemon.jobs.spool_file import open_spool_file

_SWEPT_AT_ONCE, _ALTERED_AT_ONCE = 200, 20
_CLOCK_SAVED_EVERY_SECONDS = 60.0
_EXPIRED: dict[str, Any] = ServerUnavailableError(
    "the job was not answered before it expired", field="job_deadline_s", remedy="Send it again, as a new job."
).to_openai()["error"]  # type: ignore[assignment]
# What a row was (None: the job is new), what it becomes (None: it goes), and its new content if that changes.
_Change = tuple[Row | None, Row | None, Content | None]
logger = logging.getLogger("edge")


class JobStore:
    """The file, open; arguments and methods as `Spool`'s, which calls them in one thread.

    Attributes:
        counts: as of the last commit.
        left_out: numbers of jobs that can be neither read nor failed.

    Raises:
        InputError: as `open_spool_file`.
    """

    def __init__(self, path: Path, max_bytes: int, max_waiting: int, clocks: MachineClocks) -> None:
        self.path = path
        self.left_out: set[int] = set()
        self._max_bytes, self._max_waiting = max_bytes, max_waiting
        self._clocks = clocks
        self._database = open_spool_file(path, clocks.wall())
        try:
            self._clock = JobClock(read_clock(self._database), clocks)
            self.counts = _counted(self._database)
            self._begin()
        except sqlite3.Error as error:
            self._database.close()
            raise InputError(f"spool {path} cannot be used ({error})", field="spool") from None

    def close(self) -> None:
        with suppress(sqlite3.Error):  # a full disk: the clock goes on from where it was saved last
            self._commit(lambda: write_clock(self._database, self._clock.save()))
        self._database.close()

    def _begin(self) -> None:
        """What ran waits again. Every row is read once, so that an altered one is known before it is needed."""
        for (number,) in self._database.execute("SELECT number FROM jobs").fetchall():
            row = self._load(number)
            if row is not None and row.status == "running":
                self._change((row, replace(row, status="waiting", due=0.0), None))

    def add(self, new: NewJob) -> Job:
        if new.key is not None and (existing := self.find(new.key, new.request_hash)) is not None:
            return existing
        content = Content(json.dumps(new.prompt, ensure_ascii=False), new.body)
        self.check_room(content.size)
        now = self._clock()
        row = Row(
            number=self._database.execute("SELECT COALESCE(MAX(number), 0) + 1 FROM jobs").fetchone()[0],
            id=new.id,
            key=new.key,
            request_hash=new.request_hash,
            status="waiting",
            created=float(self._clocks.wall()),
            accepted=now,
            deadline=now + new.lifetime_s,
            due=0.0,
            finished=None,
            attempts=0,
            bytes=content.size,
            content_hash=content.hash,
        )
        self._change((None, row, content))
        return self._job(row)

    def check_room(self, size: int) -> None:
        """Raises: SpoolFullError: another job of so many bytes would exceed the limits."""
        counts = self.counts
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

    def find(self, key: str, request_hash: str) -> Job | None:
        row = self._load_by("key", key)
        if row is not None and row.request_hash != request_hash:
            raise KeyReusedError
        return None if row is None else self._job(row)

    def get(self, job_id: str) -> Job | None:
        row = self._load_by("id", job_id)
        if row is None or row.finished is None:
            return None if row is None else self._job(row)
        content = read_content(self._database, row)
        if content is None or content.result is None:
            row, content = self._fail(row)
        result = json.loads(content.result or "{}")
        return replace(self._job(row), **{"answer" if row.status == "done" else "error": result})

    def newest(self, limit: int) -> list[Job]:
        numbers = self._database.execute("SELECT number FROM jobs ORDER BY number DESC LIMIT ?", (limit,)).fetchall()
        rows = [self._load(number) for (number,) in numbers]
        return [self._job(row) for row in rows if row is not None]

    def remove(self, job_id: str) -> bool:
        row = self._load_by("id", job_id)
        if row is not None:
            self._change((row, None, None))
        return row is not None

    def claim(self) -> Claimed | None:
        for _ in range(_ALTERED_AT_ONCE):
            now = self._clock()
            found = self._waiting("number", "due <= ? AND deadline > ? AND", now, now)
            if found is None:
                return None
            row = self._load(found)
            content = None if row is None or row.status != "waiting" else self._content(row)
            if row is not None and content is not None and content.body is not None:
                self._change((row, replace(row, status="running", attempts=row.attempts + 1), None))
                return Claimed(self._job(row), json.loads(content.prompt), content.body, row.deadline - now)
        return None

    def postpone(self, job_id: str, seconds: float) -> None:
        row = self._load_by("id", job_id)
        if row is not None and row.status == "running":
            self._change((row, replace(row, status="waiting", due=self._clock() + seconds), None))

    def finish(self, job_id: str, status: str, content: Content) -> bool:
        row = self._load_by("id", job_id)
        if row is None or row.status != "running":
            return False
        self._change((row, ended(row, status, content, self._clock()), content))
        return True

    def sweep(self, keep_s: float) -> float | None:
        now, expired = self._clock(), Content.ended(_EXPIRED)
        late = self._numbers("status = 'waiting' AND deadline <= ?", now)
        rows = [row for row in map(self._load, late) if row is not None and row.status == "waiting"]
        old = self._numbers("finished <= ?", now - keep_s)
        gone = [row for row in map(self._load, old) if row is not None]
        self._change(
            *((row, ended(row, "expired", expired, now), expired) for row in rows), *((row, None, None) for row in gone)
        )
        if self._clock.unsaved_s >= _CLOCK_SAVED_EVERY_SECONDS and self.counts.jobs:
            self._commit(lambda: write_clock(self._database, self._clock.save()))
        return 0.0 if _SWEPT_AT_ONCE in (len(late), len(old)) else self.seconds_until("deadline")

    def seconds_until(self, column: str) -> float | None:
        earliest = self._waiting(column)
        if earliest is None:
            return None
        return max(0.0, earliest - self._clock()) if isinstance(earliest, float) else 0.0

    def _waiting(self, column: str, which: str = "", *values: float) -> Any:
        """The least value in a column of those that wait."""
        index = {"number": "jobs_to_claim", "due": "jobs_by_due", "deadline": "jobs_by_deadline"}[column]
        query = f"SELECT {column} FROM jobs INDEXED BY {index} WHERE status = 'waiting' AND {which} {self._known} "
        found = self._database.execute(f"{query} ORDER BY {column} LIMIT 1", values).fetchone()
        return None if found is None else found[0]

    def _numbers(self, which: str, *values: float) -> list[int]:
        query = f"SELECT number FROM jobs WHERE {which} AND {self._known} LIMIT {_SWEPT_AT_ONCE}"
        return [row[0] for row in self._database.execute(query, values)]

    @property
    def _known(self) -> str:
        return f"number NOT IN ({', '.join(map(str, self.left_out))})"

    def _load_by(self, column: str, value: str) -> Row | None:
        found = self._database.execute(f"SELECT number FROM jobs WHERE {column} = ?", (value,)).fetchone()
        return None if found is None else self._load(found[0])

    def _load(self, number: int) -> Row | None:
        """A row as it was written, or failed if it is not; None if there is none, or it cannot be read."""
        try:
            found = read_row(self._database, number)
            if found is None or found[1]:
                return None if found is None else found[0]
            return self._fail(found[0])[0]
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._leave_out(number, error)
            return None

    def _content(self, row: Row) -> Content | None:
        """What a job contains as it was written, or None, and the job has failed."""
        try:
            content = read_content(self._database, row)
            if content is None:
                self._fail(row)
            return content
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            self._leave_out(row.number, error)
            return None

    def _fail(self, row: Row) -> tuple[Row, Content]:
        """An altered job: what was counted of it is not known either."""
        content = Content.ended(ALTERED)
        failed = failed_as_altered(row, content, self._clock(), self._clocks.wall())
        self._write([(row, failed, content)])
        self.counts = _counted(self._database)
        logger.error("job %s was altered on disk, and has failed", failed.id)
        return failed, content

    def _leave_out(self, number: int, error: sqlite3.Error) -> None:
        self.left_out.add(number)
        logger.error("job number %d of spool %s cannot be read and is left out (%s)", number, self.path, error)

    def _change(self, *changes: _Change) -> None:
        self._write(changes)
        for old, new, _ in changes:
            counted = [None if row is None else (row.status, row.bytes) for row in (old, new)]
            self.counts = self.counts.changed(*counted)

    def _write(self, changes: Sequence[_Change]) -> None:
        """All of it is committed, or nothing."""

        def write() -> None:
            for old, new, content in changes:
                if new is None and old is not None:
                    delete_job(self._database, old.number)
                if new is not None:
                    write_row(self._database, new)
                    if content is not None:
                        write_content(self._database, new.number, content)

        if changes:
            self._commit(write)

    def _commit(self, write: Callable[[], None]) -> None:
        try:
            self._transact(write)
        except (sqlite3.OperationalError, sqlite3.IntegrityError):
            raise
        except sqlite3.DatabaseError as error:  # an altered row, which is not where its indexes have it
            logger.warning("spool %s: its indexes are made again (%s)", self.path, error)
            self._database.execute("REINDEX")
            self._transact(write)

    def _transact(self, write: Callable[[], None]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            write()
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk failed
                self._database.execute("ROLLBACK")
            raise

    def _job(self, row: Row) -> Job:
        deadline = self._clocks.wall() + row.deadline - self._clock()
        return Job(row.id, row.status, row.created, deadline, row.attempts)


def _counted(database: sqlite3.Connection) -> Counts:
    """All jobs; of altered ones, bytes that are no number do not count."""
    size = "TOTAL(CASE typeof(bytes) WHEN 'integer' THEN bytes ELSE 0 END)"
    rows = database.execute(f"SELECT status, COUNT(*), {size} FROM jobs GROUP BY status").fetchall()
    return Counts({str(row[0]): row[1] for row in rows}, int(sum(row[2] for row in rows)))
