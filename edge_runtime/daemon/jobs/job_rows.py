"""A spool's tables: jobs in small rows, what they contain beside them, and a hash over each.

The disk of a device may alter what was written. Each row has a hash over all its fields, its content's hash among them;
what does not agree with its hash is not believed, and only that job fails.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.edge_runtime.daemon.jobs.job_clock import SavedClock

# No NOT NULL and no types: a row that breaks them is a matter of that row alone. The first index has all that the
# choice of a job needs, so that a row which cannot be read is not read for it.
SCHEMA = """
CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT UNIQUE, key TEXT UNIQUE, request_hash TEXT, status TEXT,
    created REAL, accepted REAL, deadline REAL, due REAL, finished REAL, attempts INTEGER, bytes INTEGER,
    content_hash TEXT, row_hash TEXT);
CREATE INDEX jobs_to_claim ON jobs (status, number, due, deadline);
CREATE INDEX jobs_by_due ON jobs (status, due);
CREATE INDEX jobs_by_deadline ON jobs (status, deadline);
CREATE INDEX jobs_by_end ON jobs (finished);
CREATE TABLE contents (number INTEGER PRIMARY KEY, prompt TEXT, body BLOB, result TEXT);
CREATE TABLE clock (seconds REAL, boot TEXT, since_boot REAL, row_hash TEXT);
"""
_LATEST = 1e11  # seconds since 1970 that a date can have
ALTERED: dict[str, Any] = WireError(
    "the job was altered on disk", field="spool", remedy="Send it again, as a new job."
).to_openai()["error"]  # type: ignore[assignment]


@dataclass(frozen=True)
class Row:
    """A row of `jobs`; `created` is wall time, the other times are of the spool's clock.

    Attributes:
        bytes: of prompt and body, or of the result.
        content_hash: over its row of `contents`.
    """

    number: int
    id: str
    key: str | None
    request_hash: str
    status: str
    created: float
    accepted: float
    deadline: float
    due: float
    finished: float | None
    attempts: int
    bytes: int
    content_hash: str


@dataclass(frozen=True)
class Content:
    """What a job contains: prompt and body until it has ended, then the result."""

    prompt: str
    body: bytes | None
    result: str | None = None

    @property
    def size(self) -> int:
        return len(self.prompt.encode()) + len(self.body or b"") if self.result is None else len(self.result.encode())

    @property
    def hash(self) -> str:
        return _hash_of(astuple(self))

    @classmethod
    def ended(cls, result: dict[str, Any]) -> Content:
        return cls("{}", None, json.dumps(result, ensure_ascii=False))


_COLUMNS = tuple(field.name for field in fields(Row))


def read_row(database: sqlite3.Connection, number: int) -> tuple[Row, bool] | None:
    """A job's row and whether it is as it was written; None if there is none.

    A row that is not may have values of any type.
    """
    query = f"SELECT {', '.join(_COLUMNS)}, row_hash FROM jobs WHERE number = ?"
    found = database.execute(query, (number,)).fetchone()
    if found is None:
        return None
    *values, row_hash = found
    return Row(*values), _hash_of(values) == row_hash


def read_content(database: sqlite3.Connection, row: Row) -> Content | None:
    """What a job contains; None if it is not what was written."""
    found = database.execute("SELECT prompt, body, result FROM contents WHERE number = ?", (row.number,)).fetchone()
    return Content(*found) if found is not None and _hash_of(found) == row.content_hash else None


def write_row(database: sqlite3.Connection, row: Row) -> None:
    """Insert it, or write it in place of the one with its number."""
    values = astuple(row)
    marks = ", ".join("?" * (len(values) + 1))
    database.execute("DELETE FROM jobs WHERE number = ?", (row.number,))
    database.execute(
        f"INSERT INTO jobs ({', '.join(_COLUMNS)}, row_hash) VALUES ({marks})", (*values, _hash_of(values))
    )


def write_content(database: sqlite3.Connection, number: int, content: Content) -> None:
    """Insert it, or write it in place of the one with its number."""
    database.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)", (number, *astuple(content)))


def delete_job(database: sqlite3.Connection, number: int) -> None:
    for table in ("jobs", "contents"):
        database.execute(f"DELETE FROM {table} WHERE number = ?", (number,))


def ended(row: Row, status: str, content: Content, now: float) -> Row:
    """The row of a job that ends now."""
    return replace(row, status=status, finished=now, bytes=content.size, content_hash=content.hash)


def failed_as_altered(row: Row, content: Content, now: float, wall: float) -> Row:
    """The row of an altered job: failed, with what can still be used of it."""
    row = Row(
        number=row.number,
        id=row.id if isinstance(row.id, str) else f"job-{row.number}",
        key=row.key if isinstance(row.key, str) else None,
        request_hash=row.request_hash if isinstance(row.request_hash, str) else "",
        status="failed",
        created=row.created if isinstance(row.created, float) and 0 < row.created < _LATEST else wall,
        accepted=now,
        deadline=now,
        due=0.0,
        finished=now,
        attempts=row.attempts if isinstance(row.attempts, int) else 0,
        bytes=0,
        content_hash="",
    )
    return ended(row, "failed", content, now)


def read_clock(database: sqlite3.Connection) -> SavedClock:
    """The saved clock; if it was altered, the latest moment that a job tells."""
    found = database.execute("SELECT seconds, boot, since_boot, row_hash FROM clock").fetchone()
    if found is not None and _hash_of(found[:3]) == found[3]:
        return SavedClock(*found[:3])
    moments = database.execute("SELECT accepted, finished FROM jobs").fetchall()
    known = [moment for pair in moments for moment in pair if isinstance(moment, float)]
    return SavedClock(max(known, default=0.0))


def write_clock(database: sqlite3.Connection, saved: SavedClock) -> None:
    values = astuple(saved)
    database.execute("DELETE FROM clock")
    database.execute("INSERT INTO clock VALUES (?, ?, ?, ?)", (*values, _hash_of(values)))


def _hash_of(values: Any) -> str:
    """Over types and values, those of an altered row too."""
    digest = hashlib.sha256()
    for value in values:
        data = value if isinstance(value, bytes) else ascii(value).encode()
        digest.update(f"{type(value).__name__} {len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()
