"""The same end of the wire for a process that serves many: one pool of connections, retries, deadlines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Any, cast

import httpx

from contract.errors import ContractError, ServerUnavailableError
from contract.idempotency import HEADER
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
FAREWELL_SECONDS = 5.0
BEFORE_IT_BEGINS = 4
# The server is loading, its queue is full, or a proxy lost it for a moment.
TRY_AGAIN = frozenset({429, 502, 503, 504})


class AsyncClient:
    """One server, many requests at a time.

    A request is tried again, with exponential waits and full jitter, as long as its deadline lets it, also when the
    connection breaks within the answer. All tries carry one Idempotency-Key, so the server generates once and tells
    its answer from the start; what was yielded already is compared and left out.

    Args:
        silence_s: an open answer that brings nothing for so long is taken for a broken connection. The server sends
            a line every 15 s while a request waits. Before the answer begins it is four times as long: the end of the
            body may lie in this machine's buffers, on its way through a slow network.
    """

    def __init__(self, server: str, silence_s: float = 45.0) -> None:
        self.server = server.rstrip("/")
        self._silence_s = silence_s
        self._farewells: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=FAREWELL_SECONDS)
        await self._http.aclose()

    async def ready(self, timeout: float = 2.0) -> dict[str, Any] | None:
        """What the server says of itself, None while it cannot be reached or is not ready."""
        try:
            answer = await self._http.get(f"{self.server}/readyz", timeout=timeout)
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None
        return found if answer.status_code == 200 else None

    async def stream(self, body: Body, deadline_s: float, key: str) -> AsyncGenerator[Event, None]:
        """Send a request that was encoded with `stream` set, and yield its events as they come, each once.

        Args:
            deadline_s: seconds for everything, retries and answer.
            key: the Idempotency-Key; the server goes on when this is closed early, unless `forget` tells it.

        Raises:
            ServerUnavailableError: not reached, or the answer not complete, within the deadline; or the server
                restarted and began another answer.
            RefusedError: the server refused the request.
        """
        ends = time.monotonic() + deadline_s
        seen: list[str] = []
        wait = FIRST_WAIT_SECONDS
        while True:
            known = len(seen)
            events = self._answer(body, key, seen, ends, deadline_s)
            try:
                async for event in events:
                    yield event
                return
            except _TryAgainError as again:
                if len(seen) > known:
                    wait = FIRST_WAIT_SECONDS
                pause = max(random.uniform(0, wait), again.at_least)
                if time.monotonic() + pause >= ends:
                    raise again.cause from None
                await asyncio.sleep(pause)
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
            finally:
                await events.aclose()

    def forget(self, key: str) -> None:
        """Tell the server, in the background, that this answer is needed no more. If it cannot be reached, it finds out
        by itself: a generation that nobody follows ends after a while."""

        async def tell() -> None:
            with suppress(httpx.HTTPError):
                await self._http.delete(f"{self.server}/v1/generate", headers={HEADER: key}, timeout=FAREWELL_SECONDS)

        task = asyncio.get_running_loop().create_task(tell())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _answer(
        self, body: Body, key: str, seen: list[str], ends: float, deadline_s: float
    ) -> AsyncGenerator[Event, None]:
        """One try: the events after those whose lines are in `seen`, which grows with them."""
        response = await self._try(body, key, ends - time.monotonic())
        position = 0
        try:
            lines = response.aiter_lines().__aiter__()
            while (line := await self._line(lines, ends, deadline_s)) != DONE:
                if not line.startswith(DATA):
                    continue
                event = self._event(line, response.status_code)
                if position < len(seen):
                    if line != seen[position]:
                        raise self._another_answer()
                    position += 1
                    continue
                if event.final is None:
                    seen.append(line)
                    position += 1
                yield event
        finally:
            await response.aclose()

    async def _line(self, lines: AsyncIterator[str], ends: float, deadline_s: float) -> str:
        left = ends - time.monotonic()
        try:
            return await asyncio.wait_for(lines.__anext__(), max(min(left, self._silence_s), 0.001))
        except StopAsyncIteration:
            raise _TryAgainError(broken_off(self.server, None)) from None
        except asyncio.TimeoutError:
            if left <= self._silence_s:
                raise self._too_late(deadline_s) from None
            raise _TryAgainError(broken_off(self.server, httpx.ReadTimeout("silence"))) from None
        except httpx.HTTPError as error:
            raise _TryAgainError(broken_off(self.server, error)) from None

    @staticmethod
    def _event(line: str, status: int) -> Event:
        try:
            return event_of(line, status)
        except ContractError as error:
            if error.code == ServerUnavailableError.code:  # it stops, or somebody cancelled: the next try runs anew
                raise _TryAgainError(error) from None
            raise

    async def _try(self, body: Body, key: str, left: float) -> httpx.Response:
        headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(body_size(body)), HEADER: key}

        handed_over = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in body:
                yield cast("bytes", chunk)  # a memoryview is as good, and no copy
            handed_over.set()

        try:
            message = self._http.build_request("POST", f"{self.server}/v1/generate", content=chunks(), headers=headers)
            response = await asyncio.wait_for(self._send(message, handed_over), max(left, 0.001))
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

    async def _send(self, message: httpx.Request, handed_over: asyncio.Event) -> httpx.Response:
        """The open response. Raises asyncio.TimeoutError if the whole body brings none."""
        sending = asyncio.ensure_future(self._http.send(message, stream=True))
        handed = asyncio.ensure_future(handed_over.wait())
        try:
            await asyncio.wait({sending, handed}, return_when=asyncio.FIRST_COMPLETED)
            return await asyncio.wait_for(sending, BEFORE_IT_BEGINS * self._silence_s)
        finally:
            for task in (sending, handed):
                task.cancel()

    def _another_answer(self) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"server {self.server} lost the answer and began another one",
            field="--server",
            remedy="Send the request again.",
        )

    def _too_late(self, deadline_s: float) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"server {self.server} did not finish the answer in time", field="--server", expected=f"{deadline_s:g} s"
        )


class _TryAgainError(Exception):
    """This try failed in a way that another may not."""

    def __init__(self, cause: ContractError, at_least: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause, self.at_least = cause, at_least
