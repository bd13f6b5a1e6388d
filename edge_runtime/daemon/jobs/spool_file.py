"""Opens the spool's file: checked, locked against a second daemon, and brought to today's version."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.jobs.job import STATUSES
from qwen3vl_edge.edge_runtime.daemon.jobs.job_rows import (
    ALTERED,
    SCHEMA,
    Content,
    Row,
    failed_as_altered,
    write_content,
    write_row,
)

SCHEMA_VERSION = 2
_CHECKED = 100  # findings of SQLite that are looked at
logger = logging.getLogger("edge")


def open_spool_file(path: Path, wall: float) -> sqlite3.Connection:
    """The database in WAL mode with synchronous=FULL: a commit returns once its bytes are on the disk, and is atomic.

    Args:
        wall: seconds since 1970.

    Raises:
        InputError: the file cannot be used: corrupt, of another program, or open in another daemon.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"spool {path} cannot be opened ({error})", field="spool") from None
    try:
        _prepare(database, path, wall)
    except sqlite3.OperationalError as error:
        database.close()
        locked = "locked" in str(error)
        what = "is open in another daemon" if locked else f"cannot be used ({error})"
        raise InputError(f"spool {path} {what}", field="spool") from None
    except sqlite3.DatabaseError as error:
        database.close()
        raise _damaged(path, str(error)) from None
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, wall: float) -> None:
    # One altered byte in a text is a matter of its row: strictly decoded, it would be an error of the whole query.
    database.text_factory = lambda data: data.decode(errors="replace")
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA journal_size_limit = {4 * 2**20}")
    database.execute("PRAGMA secure_delete = OFF")
    if found := _findings(database, "quick_check"):
        raise _damaged(path, found)
    version = database.execute("PRAGMA user_version").fetchone()[0]
    database.execute("BEGIN IMMEDIATE")
    if version == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
        _create(database)
    elif version == 1:
        _from_version_1(database, wall)
    elif version != SCHEMA_VERSION:
        raise InputError(
            f"{path} is no spool of this release",
            field="spool",
            expected=f"version {SCHEMA_VERSION}",
            got=version,
            remedy="Name another file.",
        )
    database.execute("COMMIT")
    if found := _findings(database, "integrity_check"):  # its pages are sound: rows and indexes do not agree
        logger.warning("spool %s: its indexes are made again (%s)", path, found)
        database.execute("REINDEX")
    _sync_folder(path.parent)


def _findings(database: sqlite3.Connection, check: str) -> str:
    found = [row[0] for row in database.execute(f"PRAGMA {check}({_CHECKED})")]
    return "" if found == ["ok"] else str(found[0])


def _damaged(path: Path, how: str) -> InputError:
    return InputError(
        f"spool {path} is damaged ({how})",
        field="spool",
        remedy="Nothing was deleted. Move it away together with its -wal file and start again; "
        "`sqlite3 FILE .recover` may read jobs out of it.",
    )


def _create(database: sqlite3.Connection) -> None:
    for statement in SCHEMA.split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _from_version_1(database: sqlite3.Connection, wall: float) -> None:
    """Its deadlines are wall times, of a clock that may have been wrong: each job's lifetime begins anew."""
    database.execute("ALTER TABLE jobs RENAME TO jobs_1")
    database.execute("DROP INDEX jobs_by_status")
    _create(database)
    columns = (
        "number, id, key, request_hash, status, created, deadline, attempts, prompt, body, body_hash, answer, error"
    )
    numbers = database.execute("SELECT number FROM jobs_1 ORDER BY number").fetchall()
    for (number,) in numbers:
        values = database.execute(f"SELECT {columns} FROM jobs_1 WHERE number = ?", (number,)).fetchone()
        row, content = _row_of_version_1(dict(zip(columns.split(", "), values, strict=True)), wall)
        write_row(database, row)
        write_content(database, number, content)
    database.execute("DROP TABLE jobs_1")


def _row_of_version_1(old: dict[str, Any], wall: float) -> tuple[Row, Content]:
    ended = old["status"] not in ("waiting", "running")
    try:
        content = Content(old["prompt"], old["body"])
        if ended:
            content = Content.ended(json.loads(old["error"] if old["answer"] is None else old["answer"]))
        elif hashlib.sha256(old["body"]).hexdigest() != old["body_hash"] or not json.loads(old["prompt"]):
            raise ValueError
        row = Row(
            number=old["number"],
            id=old["id"],
            key=old["key"],
            request_hash=old["request_hash"],
            status=STATUSES[STATUSES.index(old["status"])],
            created=float(old["created"]),
            accepted=0.0,
            deadline=float(old["deadline"] - old["created"]),
            due=0.0,
            finished=0.0 if ended else None,
            attempts=int(old["attempts"]),
            bytes=content.size,
            content_hash=content.hash,
        )
    except (TypeError, ValueError):
        content = Content.ended(ALTERED)
        unread = Row(**{**dict.fromkeys(Row.__dataclass_fields__), **{name: old[name] for name in _KEPT}})
        return failed_as_altered(unread, content, 0.0, wall), content
    return row, content


_KEPT = ("number", "id", "key", "request_hash", "created", "attempts")


def _sync_folder(folder: Path) -> None:
    """The new file's name is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
