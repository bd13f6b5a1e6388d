"""Bearer tokens: a TOML file of clients and the hashes of their tokens, read again when it changes.

    [[client]]
    name = "camera-3"
    sha256 = "…64 hexadecimal digits…"
    expires = 2027-01-01T00:00:00Z     # optional, as are the two below
    requests_per_minute = 60
    max_concurrent = 4

A token is 256 random bits, so a plain sha256 is enough: an exhaustive search is infeasible, and a slow hash would only
delay each request. A name may have several tokens, so that one can be replaced: add the new, distribute it, remove the
old.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.contract.formats.settings import read_toml

logger = logging.getLogger("server")
CHECK_SECONDS = 1.0
_FIELD = "tokens_file"
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_KNOWN = ("name", "sha256", "expires", "requests_per_minute", "max_concurrent")


@dataclass(frozen=True)
class TokenEntry:
    """One token of a client.

    Attributes:
        name: the client's.
        digest: sha256 of the token.
        expires: Unix seconds, or None.
        requests_per_minute: overrides the server's limit; 0 for no limit.
        max_concurrent: most in-flight requests of this client, waiting ones included; None for no limit.
    """

    name: str
    digest: bytes
    expires: float | None = None
    requests_per_minute: float | None = None
    max_concurrent: int | None = None


class TokenFile:
    """The current tokens of a file. Used from one thread.

    If the file becomes missing or invalid after the start, the previous tokens stay valid and the error is logged.

    Args:
        clock: monotonic seconds.

    Raises:
        InputError: the file cannot be used at the start.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._entries = read_tokens(path)
        self._next_check = clock() + CHECK_SECONDS
        if not self._entries:
            logger.warning("%s names no client: every request will be answered 401", path)

    def find(self, token: bytes) -> TokenEntry | None:
        """The entry of a token, expired or not; takes the same time for valid and invalid tokens."""
        self._refresh()
        digest = hashlib.sha256(token).digest()
        match = None
        for entry in self._entries:
            if hmac.compare_digest(entry.digest, digest):
                match = entry
        return match

    def check_soon(self) -> None:
        """Check the file before the next request; may be called in a signal handler."""
        self._next_check = float("-inf")
        self._stamp = ()

    def _refresh(self) -> None:
        if self._clock() < self._next_check:
            return
        self._next_check = self._clock() + CHECK_SECONDS
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = read_tokens(self._path)
        except InputError as error:
            logger.error("the previous tokens stay in use: %s", error)
            return
        logger.info("%s read: %d tokens", self._path, len(self._entries))


def _stamp(path: Path) -> tuple[int, ...]:
    """A value that differs after any change, including the mode: `st_ctime` cannot be set back."""
    try:
        status = path.stat()
    except OSError:
        return (0,)
    return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """All entries of a file.

    Raises:
        InputError: names the file, and the entry by its number from 1.
    """
    table = read_toml(path, _FIELD)
    if set(table) - {"client"} or not isinstance(table.get("client", []), list):
        raise InputError(f"{path} is not a tokens file", field=_FIELD, expected="tables [[client]] and nothing else")
    entries = tuple(_entry(path, index, item) for index, item in enumerate(table.get("client", []), 1))
    if len({entry.digest for entry in entries}) != len(entries):
        raise InputError(f"{path} holds one token twice", field=_FIELD, remedy="Give each client its own.")
    return entries


def _entry(path: Path, index: int, item: Any) -> TokenEntry:
    where = f"{path}, client {index}"
    if not isinstance(item, dict):
        raise InputError(f"{where}: not a table", field=_FIELD)
    for name in item:
        if name not in _KNOWN:
            raise InputError(f"{where}: unknown key {name!r}", field=_FIELD, expected=", ".join(_KNOWN))
    name, digest = item.get("name"), item.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{where}: bad name", field=_FIELD, expected="1 to 64 of A-Z a-z 0-9 . _ @ -")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InputError(f"{where}: bad sha256", field=_FIELD, expected="64 hexadecimal digits")
    rate = _number(where, "requests_per_minute", item, 0, 1e9)
    most = _number(where, "max_concurrent", item, 1, 1e9)
    return TokenEntry(
        name, bytes.fromhex(digest), _expires(where, item.get("expires")), rate, None if most is None else int(most)
    )


def _number(where: str, name: str, item: dict[str, Any], low: float, high: float) -> float | None:
    value = item.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}: bad {name}", field=_FIELD, expected=f"{low:g} to {high:g}", got=repr(value)[:40])
    return float(value)


def _expires(where: str, value: Any) -> float | None:
    """Unix seconds; a time without a zone is UTC, a date is midnight."""
    if value is None:
        return None
    if not isinstance(value, date):  # a datetime is a date too
        raise InputError(f"{where}: bad expires", field=_FIELD, expected="a TOML date, such as 2027-01-01T00:00:00Z")
    when = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    return (when if when.tzinfo is not None else when.replace(tzinfo=timezone.utc)).timestamp()


def add_token(path: Path, name: str, expires: datetime | None = None) -> str:
    """Create a token for a client and add its hash to the file, which is created if missing (mode 0600).

    Returns:
        The token; it is not stored anywhere.

    Raises:
        InputError: a bad name, or a file that cannot be read or written, or is not a tokens file.
    """
    if not _NAME.fullmatch(name):
        raise InputError("bad name", field="NAME", expected="1 to 64 of A-Z a-z 0-9 . _ @ -", got=repr(name)[:80])
    token = secrets.token_urlsafe(32)
    lines = ["[[client]]", f'name = "{name}"', f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"']
    if expires is not None:
        lines.append(f"expires = {expires.astimezone(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')}")
    try:
        _append(path, "\n".join(lines) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", field="--file") from None
    return token


def _append(path: Path, text: str) -> None:
    import fcntl  # not available on every system

    path = atomic.target_of(path)  # one lock for all links to it
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # or concurrent writers would lose entries; the file itself is replaced
        if not path.exists():
            atomic.write_bytes(path, text.encode(), 0o600)
            return
        read_tokens(path)  # do not add to a file that the server would reject
        before, old = path.stat(), path.read_bytes()
        new = old.rstrip() + (b"\n\n" if old.strip() else b"") + text.encode()
        # When root writes it, the server's user must be able to read it.
        atomic.write_bytes(path, new, before.st_mode & 0o777, owner=(before.st_uid, before.st_gid))
    finally:
        os.close(folder)
