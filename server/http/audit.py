"""The audit log, one JSON line per request: never a prompt, an answer, a token or an embedding.

    {"time": "2026-11-23T10:00:00.000Z", "request_id": …, "client": …, "address": …, "method": …, "path": …,
     "status": 200, "bytes_in": …, "prompt_tokens": …, "visual_tokens": …, "generated_tokens": …, "seconds": …,
     "error": null}

A line is written when the response and its generation have ended; after a disconnect the generation may end later.
`bytes_in` counts the body bytes that were read, as sent: 0 if a request is rejected by its headers. Tokens are null if
nothing was generated. A repeated request with the same Idempotency-Key has the token counts of its one generation.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import stat
import time
import uuid
from concurrent.futures import CancelledError
from functools import partial
from io import FileIO
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.errors import HttpError, error_response

if TYPE_CHECKING:
    from qwen3vl_edge.server.generation.live_generation import LiveGeneration

logger = logging.getLogger("server")
HEADER = "X-Request-Id"
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
_PATH_CHARACTERS = 200
_CLOSING_SECONDS = 1.0


class AuditLog:
    """An append-only file that only this user can read; thread-safe.

    A file that was moved or deleted is created again before the next line. A full disk loses lines, not requests: the
    failure is logged, and the next line is written if possible. After a part of a line, which a full disk or a power
    failure leaves, the next begins a line of its own.

    Raises:
        InputError: the file cannot be opened at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = _PrivateFile(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})", field="audit_log") from None

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._file.handle(logging.makeLogRecord({"msg": json.dumps(line)}))
        except OSError as error:
            logger.error("audit log %s cannot be written (%s)", self._path, error.strerror)


def write_refusal(audit: AuditLog, error: HttpError, address: str) -> None:
    """The line of what was no HTTP request as it should be: it has neither method nor path."""
    scope: Scope = {"state": {"error_code": error.code}, "client": (address, 0), "method": "", "path": ""}
    audit.write(_line(scope, uuid.uuid4().hex, time.time(), error.status, 0, 0.0))


class _PrivateFile(WatchedFileHandler):
    """The stdlib's handler with a file of mode 0600, one write for each line, and errors raised to the caller."""

    # Unbuffered: what a full disk refuses must not be written later, without its beginning.
    stream: FileIO | None  # type: ignore[assignment]

    def _open(self) -> FileIO:  # type: ignore[override]
        file = FileIO(self.baseFilename, "a", opener=partial(os.open, mode=0o600))
        self._torn = _ends_within_a_line(self.baseFilename)
        return file

    def emit(self, record: logging.LogRecord) -> None:
        self.reopenIfNeeded()
        if self.stream is None:
            self.stream = self._open()
        line = (b"\n" if self._torn else b"") + record.getMessage().encode() + b"\n"
        written = self.stream.write(line) or 0
        self._torn = _ends_within_a_line(self.baseFilename) if written < len(line) else False
        if written < len(line):
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes of a line were written")


def _ends_within_a_line(path: str) -> bool:
    """Whether a regular file has a last line without an end."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # it may be written and not read: an empty line at worst
        return True


class RequestRecord:
    """ASGI middleware: every response carries the request's id, and every request is logged in the audit log.

    The id is the sender's `X-Request-Id` if that is short and safe, or else a new one. It is stored in
    `request.state.request_id`; a route that generates stores its `LiveGeneration` in `request.state.running`.
    """

    def __init__(self, app: ASGIApp, audit: AuditLog | None) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        name = state["request_id"] = _request_id(scope)
        started, clock, status, size = time.time(), time.perf_counter(), 0, 0

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message

        async def naming(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            try:
                await send(message)
            except Exception:  # parser-specific; the HTTP server raises it when it cannot send a response
                if not await _is_disconnected(receive):
                    raise
                state["error_code"] = "client_left"  # malformed HTTP within the body; the parser has sent a 400

        try:
            await self._app(scope, counting, naming)
        except Exception:
            logger.error("request %s failed", name)  # an outer layer logs its stack trace
            state["error_code"] = "internal_error"
            if not status:
                failed = HttpError(500, "internal_error", "the server failed on this request", got=f"request {name}")
                await error_response(failed)(scope, receive, naming)
            raise
        finally:
            if self._audit is not None:
                line = _line(scope, name, started, status, size, time.perf_counter() - clock)
                _when_generated(self._audit, line, state.get("running"))


async def _is_disconnected(receive: Receive) -> bool:
    """Whether the connection is closed or closing."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(disconnected(), _CLOSING_SECONDS)
    except asyncio.TimeoutError:
        return False
    return True


def _request_id(scope: Scope) -> str:
    ids = [value for name, value in scope["headers"] if name == HEADER.lower().encode()]
    return ids[0].decode() if len(ids) == 1 and _SAFE_ID.fullmatch(ids[0]) else uuid.uuid4().hex


def _line(scope: Scope, name: str, started: float, status: int, size: int, seconds: float) -> dict[str, Any]:
    state = scope["state"]
    client = scope.get("client")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started))
    return {
        "time": f"{stamp}.{int(started % 1 * 1000):03d}Z",
        "request_id": name,
        "client": state.get("client_name", ""),
        "address": client[0][:64] if client else "",
        "method": scope["method"][:16],
        "path": scope["path"][:_PATH_CHARACTERS],  # without the query
        "status": status or 499,  # the client disconnected before the response
        "bytes_in": size,
        "prompt_tokens": None,
        "visual_tokens": None,
        "generated_tokens": None,
        "seconds": round(seconds, 6),
        "error": state.get("error_code"),
    }


def _when_generated(audit: AuditLog, line: dict[str, Any], running: LiveGeneration | None) -> None:
    """Write the line once its generation has ended."""

    def write(_: object) -> None:
        assert running is not None
        try:
            result = running.future.result(timeout=0)
        except (Exception, CancelledError) as error:
            line["error"] = line["error"] or getattr(error, "code", "internal_error")
        else:
            line["prompt_tokens"], line["visual_tokens"] = result.prompt_tokens, result.visual_tokens
            line["generated_tokens"] = len(result.generated_ids)
        audit.write(line)

    if running is None:
        audit.write(line)
    else:
        running.future.add_done_callback(write)  # called immediately if it has already ended
