"""The same end of the wire for a process that serves many: one pool of connections, retries, deadlines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import httpx

from contract.errors import ContractError, ServerUnavailableError
from contract.wire import CONTENT_TYPE, body_size
from edge_runtime.client import (
    CONNECT_TIMEOUT_SECONDS,
    DATA,
    DONE,
    Body,
    Event,
    broken_off,
    error_body,
    event_of,
    refused,
    unreachable,
)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 8.0
# The server is loading, its queue is full, or a proxy lost it for a moment.
TRY_AGAIN = frozenset({429, 502, 503, 504})


class AsyncClient:
    """One server, many requests at a time.

    A request is tried again, with exponential waits and full jitter, as long as its deadline lets it and no part
    of an answer has come: a generation changes nothing on the server, so a second try is the same request.
    """

    def __init__(self, server: str, headers: Mapping[str, str] | None = None) -> None:
        """`headers`: of every request, such as an API key."""
        self.server = server.rstrip("/")
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ready(self, timeout: float = 2.0) -> dict[str, Any] | None:
        """What the server says of itself, None while it cannot be reached or is not ready."""
        return await self.get("/readyz", timeout)

    async def get(self, path: str, timeout: float) -> dict[str, Any] | None:
        """The JSON object at a path of the server, None where it cannot be had."""
        try:
            answer = await self._http.get(f"{self.server}{path}", timeout=timeout)
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None
        return found if answer.status_code == 200 and isinstance(found, dict) else None

    async def stream(self, body: Body, deadline_s: float) -> AsyncGenerator[Event, None]:
        """Send a request that was encoded with `stream` set, and yield its events as they come.

        Args:
            deadline_s: seconds for everything, retries and answer.

        Raises:
            ServerUnavailableError: not reached, or the answer not complete, within the deadline.
            RefusedError: the server refused the request.
        """
        lines = self.lines("/v1/generate", body, CONTENT_TYPE, deadline_s)
        try:
            async for line in lines:
                yield event_of(line, 200)
        finally:
            await lines.aclose()

    async def lines(self, path: str, body: Body, content_type: str, deadline_s: float) -> AsyncGenerator[str, None]:
        """POST a body and yield the `data:` lines of the answer, without the last, `[DONE]`.

        Raises:
            ServerUnavailableError, RefusedError: as `stream`.
        """
        ends = time.monotonic() + deadline_s
        response = await self._open(_Post(f"{self.server}{path}", body, content_type), ends)
        try:
            lines = response.aiter_lines().__aiter__()
            while True:
                try:
                    line = await asyncio.wait_for(lines.__anext__(), max(ends - time.monotonic(), 0.001))
                except StopAsyncIteration:
                    raise broken_off(self.server, None) from None
                except asyncio.TimeoutError:
                    raise self._too_late(deadline_s) from None
                except httpx.HTTPError as error:
                    raise broken_off(self.server, error) from None
                if line == DONE:
                    return
                if line.startswith(DATA):
                    yield line
        finally:
            await response.aclose()  # a client that leaves closes this, and the server stops generating

    async def _open(self, post: _Post, ends: float) -> httpx.Response:
        """The open response, after as many tries as there is time for."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return await self._try(post, ends - time.monotonic())
            except _TryAgainError as again:
                pause = max(random.uniform(0, wait), again.at_least)
                if time.monotonic() + pause >= ends:
                    raise again.cause from None
                await asyncio.sleep(pause)
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    async def _try(self, post: _Post, left: float) -> httpx.Response:
        headers = {"Content-Type": post.content_type, "Content-Length": str(body_size(post.body))}

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in post.body:
                yield cast("bytes", chunk)  # a memoryview is as good, and no copy

        try:
            message = self._http.build_request("POST", post.url, content=chunks(), headers=headers)
            response = await asyncio.wait_for(self._http.send(message, stream=True), max(left, 0.001))
        except asyncio.TimeoutError:
            raise _TryAgainError(unreachable(self.server, TimeoutError())) from None
        except httpx.InvalidURL as error:
            raise unreachable(self.server, error) from None
        except httpx.HTTPError as error:
            raise _TryAgainError(unreachable(self.server, error)) from None
        if response.status_code < 400:
            return response
        await response.aread()
        found = refused(error_body(response), response.status_code)
        await response.aclose()
        if response.status_code in TRY_AGAIN:
            asked = response.headers.get("retry-after", "")
            raise _TryAgainError(found, float(asked) if asked.isdigit() else 0.0)
        raise found

    def _too_late(self, deadline_s: float) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"server {self.server} did not finish the answer in time", field="--server", expected=f"{deadline_s:g} s"
        )


@dataclass(frozen=True)
class _Post:
    url: str
    body: Body
    content_type: str


class _TryAgainError(Exception):
    """This try failed in a way that another may not."""

    def __init__(self, cause: ContractError, at_least: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause, self.at_least = cause, at_least
