"""The same end of the wire for a process that serves many: one pool of connections, retries, deadlines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, cast

import httpx

from qwen3vl_edge.contract.errors import ContractError, ServerUnavailableError
from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.http.tracing import outgoing_headers
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, body_size
from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
from qwen3vl_edge.edge_runtime.client.event_lines import async_lines_of
from qwen3vl_edge.edge_runtime.client.server_access import ServerAccess
from qwen3vl_edge.edge_runtime.client.sync_client import (
    ANYBODY,
    CONNECT_TIMEOUT_SECONDS,
    DATA,
    DONE,
    Body,
    Event,
    RefusedError,
    broken_off,
    content_headers,
    error_body,
    event_of,
    refused,
    unreachable,
)

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 8.0
FAREWELL_SECONDS = 5.0
BEFORE_IT_BEGINS = 4  # times the silence of an answer under way
# The server is loading, its queue is full, or a proxy lost it for a moment.
TRY_AGAIN = frozenset({429, 502, 503, 504})
NOT_LET_IN = frozenset({401, 403})


Instead = Callable[[RefusedError], "Body | None"]


class AsyncClient:
    """One server, many requests at a time.

    A request is tried again, with exponential waits and full jitter, as long as its deadline lets it.

    Args:
        access: the token and certificates that the server asks for.
        silence_s: an open answer that brings nothing for so long is taken for a broken connection. This project's
            server sends a line every 15 s while a request waits. Before the answer begins it is four times as long:
            the end of the body may lie in this machine's buffers, on its way through a slow network.
        link: learns from every body how fast the server receives.

    Attributes:
        let_in: whether the server let the last request in, as its token goes; true before the first.

    Raises:
        InputError: a file of `access` cannot be used.
    """

    def __init__(
        self,
        server: str,
        access: ServerAccess = ANYBODY,
        silence_s: float = 45.0,
        link: BandwidthEstimate | None = None,
    ) -> None:
        self.link = link or BandwidthEstimate()
        self.let_in = True
        self.server = server.rstrip("/")
        self._silence_s = silence_s
        self._farewells: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            headers=access.headers,
            verify=access.verify(),
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
        return await self.get("/readyz", timeout)

    async def get(self, path: str, timeout: float) -> dict[str, Any] | None:
        """The JSON object at a path of the server, None where it cannot be had."""
        try:
            answer = await self._http.get(f"{self.server}{path}", timeout=timeout)
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None
        return found if answer.status_code == 200 and isinstance(found, dict) else None

    async def stream(
        self, body: Body, deadline_s: float, key: str, instead: Instead | None = None
    ) -> AsyncGenerator[Event, None]:
        """Send a request that was encoded with `stream` set, and yield its events as they come, each once.

        It is tried again also when the connection breaks within the answer. All tries carry one Idempotency-Key, so
        the server generates once and tells its answer from the start; what was yielded already is compared and left
        out.

        Args:
            deadline_s: seconds for everything, retries and answer.
            key: the Idempotency-Key; the server goes on when this is closed early, unless `forget` tells it.
            instead: asked when a try is refused, also one within the answer: the same request in another form, which
                is sent at once, or None to give up.

        Raises:
            ServerUnavailableError: not reached, or the answer not complete, within the deadline; or the server
                restarted and began another answer.
            RefusedError: the server refused the request.
        """
        post = _Post(f"{self.server}/v1/generate", body, CONTENT_TYPE, deadline_s, key)
        seen: list[str] = []
        waits = _Waits(post.ends)
        while True:
            known, complete = len(seen), False
            try:
                async with aclosing(self._events(post, seen)) as events:
                    async for event in events:
                        yield event
                        complete = event.final is not None
                return
            except RefusedError as error:
                other = None if instead is None else instead(error)
                if other is None:
                    raise
                post.body = other
            except _TryAgainError as again:
                if complete:  # only the farewell was lost
                    return
                if len(seen) > known:
                    waits = _Waits(post.ends)
                await waits.pause(again)

    async def lines(self, path: str, body: Body, content_type: str, deadline_s: float) -> AsyncGenerator[str, None]:
        """POST a body and yield the `data:` lines of the answer, without the last, `[DONE]`.

        For servers that know no Idempotency-Key: once the answer has begun it is not asked for again, because the
        second one may be another.

        Raises:
            ServerUnavailableError, RefusedError: as `stream`.
        """
        post = _Post(f"{self.server}{path}", body, content_type, deadline_s)
        waits = _Waits(post.ends)
        while True:
            try:
                response = await self._open(post)
                break
            except _TryAgainError as again:
                await waits.pause(again)
        try:
            async with aclosing(self._lines(response, post)) as lines:
                async for line in lines:
                    yield line
        except _TryAgainError as broken:
            raise broken.cause from None

    def forget(self, key: str) -> None:
        """Tell the server, in the background, that this answer is needed no more. If it cannot be reached, it finds out
        by itself: a generation that nobody follows ends after a while."""

        async def tell() -> None:
            with suppress(httpx.HTTPError):
                await self._http.delete(f"{self.server}/v1/generate", headers={HEADER: key}, timeout=FAREWELL_SECONDS)

        task = asyncio.get_running_loop().create_task(tell())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _events(self, post: _Post, seen: list[str]) -> AsyncGenerator[Event, None]:
        """One try: the events after those whose lines are in `seen`, which grows with them."""
        response = await self._open(post)
        position = 0
        async with aclosing(self._lines(response, post)) as lines:
            async for line in lines:
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

    async def _lines(self, response: httpx.Response, post: _Post) -> AsyncGenerator[str, None]:
        """The `data:` lines of an open answer, until `[DONE]`; the answer is closed at the end."""
        lines = async_lines_of(response.aiter_bytes()).__aiter__()
        try:
            while (line := await self._line(lines, post)) != DONE:
                if line.startswith(DATA):
                    yield line
        finally:
            await response.aclose()  # a client that leaves closes this

    async def _line(self, lines: AsyncIterator[str], post: _Post) -> str:
        left = post.left
        try:
            return await asyncio.wait_for(lines.__anext__(), min(left, self._silence_s) if post.key else left)
        except StopAsyncIteration:
            raise _TryAgainError(broken_off(self.server, None)) from None
        except asyncio.TimeoutError:
            if not post.key or left <= self._silence_s:
                raise self._too_late(post) from None
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

    async def _open(self, post: _Post) -> httpx.Response:
        """One try: the open answer."""
        headers = content_headers(post.body, post.content_type)
        if post.key:
            headers[HEADER] = post.key
        headers |= outgoing_headers()

        handed_over = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in post.body:
                yield cast("bytes", chunk)  # a memoryview is as good, and no copy
            handed_over.set()

        try:
            message = self._http.build_request("POST", post.url, content=chunks(), headers=headers)
            response = await asyncio.wait_for(self._send(message, handed_over if post.key else None), post.left)
        except asyncio.TimeoutError:
            raise _TryAgainError(unreachable(self.server, TimeoutError())) from None
        except httpx.InvalidURL as error:
            raise unreachable(self.server, error) from None
        except httpx.HTTPError as error:
            raise _TryAgainError(unreachable(self.server, error)) from None
        self.let_in = response.status_code not in NOT_LET_IN
        if response.status_code < 400:
            self.link.heard(body_size(post.body), response.headers.get("server-timing", ""))
            return response
        try:
            await response.aread()
        except httpx.HTTPError as error:  # cut within the reason
            raise _TryAgainError(unreachable(self.server, error)) from None
        finally:
            await response.aclose()
        found = refused(error_body(response), response.status_code)
        if response.status_code in TRY_AGAIN:
            asked = response.headers.get("retry-after", "")
            raise _TryAgainError(found, float(asked) if asked.isdigit() else 0.0)
        raise found

    async def _send(self, message: httpx.Request, handed_over: asyncio.Event | None) -> httpx.Response:
        """The open answer.

        Args:
            handed_over: set once the whole body has been; None where a server may take any time to begin.

        Raises:
            asyncio.TimeoutError: the whole body was handed over and brought none.
        """
        if handed_over is None:
            return await self._http.send(message, stream=True)
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

    def _too_late(self, post: _Post) -> ServerUnavailableError:
        expected = f"{post.deadline_s:g} s"
        return ServerUnavailableError(
            f"server {self.server} did not finish the answer in time", field="--server", expected=expected
        )


class _Post:
    """One request, and when it has to be done; `key` where it may be sent again within its answer."""

    def __init__(self, url: str, body: Body, content_type: str, deadline_s: float, key: str = "") -> None:
        self.url, self.body, self.content_type = url, body, content_type
        self.deadline_s, self.key = deadline_s, key
        self.ends = time.monotonic() + deadline_s

    @property
    def left(self) -> float:
        """Seconds until its deadline, for `wait_for`."""
        return max(self.ends - time.monotonic(), 0.001)


class _Waits:
    """Exponential waits with full jitter between tries."""

    def __init__(self, ends: float) -> None:
        self._ends, self._next = ends, FIRST_WAIT_SECONDS

    async def pause(self, again: _TryAgainError) -> None:
        """Wait; where the deadline would pass meanwhile, raise what went wrong."""
        seconds = max(random.uniform(0, self._next), again.at_least)
        if time.monotonic() + seconds >= self._ends:
            raise again.cause from None
        await asyncio.sleep(seconds)
        self._next = min(self._next * 2, LONGEST_WAIT_SECONDS)


class _TryAgainError(Exception):
    """This try failed in a way that another may not."""

    def __init__(self, cause: ContractError, at_least: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause, self.at_least = cause, at_least
