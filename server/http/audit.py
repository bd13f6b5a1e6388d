"""The audit log, one JSON line per request: never a prompt, an answer, a token or an embedding.

    {"time": "2026-11-23T10:00:00.000Z", "request_id": …, "client": …, "address": …, "method": …, "path": …,
     "status": 200, "bytes_in": …, "prompt_tokens": …, "visual_tokens": …, "generated_tokens": …, "seconds": …,
     "error": null}

A line is written when the answer has ended, and the generation with it: after a client has left, that may be later.
`bytes_in` counts the bytes of the body that were read, as they were sent: 0 where a request is refused by its headers.
Tokens are null where nothing was generated. A request that is sent again under its Idempotency-Key has the tokens of
the one generation again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
import uuid
from concurrent.futures import CancelledError
from functools import partial
from io import TextIOWrapper
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
    """An append-only file that only this user can read; safe to use from several threads.

    A file that was moved or deleted is created again before the next line. A full disk costs lines, not requests: the
    failure is logged, and the next line is tried again.

    Raises:
        InputError: the file cannot be opened at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = _PrivateFile(path, encoding="ascii")
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror})", field="audit_log") from None

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._file.handle(logging.makeLogRecord({"msg": json.dumps(line)}))
        except OSError as error:
            logger.error("audit log %s cannot be written (%s)", self._path, error.strerror)


class _PrivateFile(WatchedFileHandler):
    """The stdlib's handler with a file of mode 0600, and errors for whoever writes a line."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=partial(os.open, mode=0o600))

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # noqa: PLE0704  (called within the handler of what was raised)


class RequestRecord:
    """ASGI middleware: every answer carries the request's id, and every request leaves a line in the audit log.

    The id is the sender's `X-Request-Id` where that is short and harmless, or else a new one. It stands in
    `request.state.request_id`; a route that generates puts its `LiveGeneration` into `request.state.running`.
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
            except Exception:  # the server's: each HTTP parser has its own, for an answer that it does not send
                if not await _has_left(receive):
                    raise
                state["error_code"] = "client_left"  # it broke HTTP within its body, and the parser has answered 400

        try:
            await self._app(scope, counting, naming)
        except Exception:
            logger.error("request %s failed", name)  # its stack trace is logged further out
            state["error_code"] = "internal_error"
            if not status:
                failed = HttpError(500, "internal_error", "the server failed on this request", got=f"request {name}")
                await error_response(failed)(scope, receive, naming)
            raise
        finally:
            if self._audit is not None:
                line = _line(scope, name, started, status, size, time.perf_counter() - clock)
                _when_generated(self._audit, line, state.get("running"))


async def _has_left(receive: Receive) -> bool:
    """Whether the connection is closed, or is about to be."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(left(), _CLOSING_SECONDS)
    except asyncio.TimeoutError:
        return False
    return True


def _request_id(scope: Scope) -> str:
    found = [value for name, value in scope["headers"] if name == HEADER.lower().encode()]
    return found[0].decode() if len(found) == 1 and _SAFE_ID.fullmatch(found[0]) else uuid.uuid4().hex


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
        "status": status or 499,  # it left before it had an answer
        "bytes_in": size,
        "prompt_tokens": None,
        "visual_tokens": None,
        "generated_tokens": None,
        "seconds": round(seconds, 6),
        "error": state.get("error_code"),
    }


def _when_generated(audit: AuditLog, line: dict[str, Any], running: LiveGeneration | None) -> None:
    """Write the line once what it counts has ended."""

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
        running.future.add_done_callback(write)  # at once, where it has ended
