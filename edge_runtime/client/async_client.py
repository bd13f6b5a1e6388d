"""The HTTP client of a process with many requests: one pool of connections, retries, deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

from qwen3vl_edge.contract.errors import ContractError, ServerUnavailableError
from qwen3vl_edge.contract.formats.shown_url import shown_url
from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.http.tracing import outgoing_headers
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import (
    DONE,
    Event,
    RefusedError,
    broken_off,
    error_body,
    event_of,
    refused,
    unreachable,
)
from qwen3vl_edge.edge_runtime.client.bandwidth import BandwidthEstimate
from qwen3vl_edge.edge_runtime.client.retry import RETRYABLE_STATUSES, Backoff, RetryableError
from qwen3vl_edge.edge_runtime.client.server_credentials import CONNECT_TIMEOUT_SECONDS, NO_CREDENTIALS, ServerAccess

FAREWELL_SECONDS = 5.0
BEFORE_IT_BEGINS = 4  # times `silence_s`
NOT_LET_IN = frozenset({401, 403})


Instead = Callable[[RefusedError], "WireBody | None"]


class AsyncClient:
    """One server, many requests at a time.

    A request is retried, with exponential backoff and full jitter, until its deadline.

    Args:
        access: the token and certificates that the server requires.
        silence_s: httpx's read timeout within an answer; a connection without a byte for so long counts as broken. This
            project's server sends a comment every 15 s while a request waits. Before the answer begins it is four times
            as long: the end of the body may still be in this machine's buffers, on its way through a slow network.
        bandwidth: updated from every body.

    Attributes:
        let_in: whether the server accepted the token of the last request; true before the first.

    Raises:
        InputError: a file of `access` cannot be used.
    """

    def __init__(
        self,
        server: str,
        access: ServerAccess = NO_CREDENTIALS,
        silence_s: float = 45.0,
        bandwidth: BandwidthEstimate | None = None,
    ) -> None:
        self.bandwidth = bandwidth or BandwidthEstimate()
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
        """The server's `/readyz`, None while it cannot be reached or is not ready."""
        content = await self.get("/readyz", timeout)
        if content is not None and isinstance(dtype := content.get("dtype"), str):
            self.bandwidth.model_dtype = dtype.removeprefix("torch.")
        return content

    async def get(self, path: str, timeout: float) -> dict[str, Any] | None:
        """The JSON object at a path of the server, None if it cannot be fetched."""
        try:
            answer = await self._http.get(f"{self.server}{path}", timeout=timeout)
            content: dict[str, Any] = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return None
        return content if answer.status_code == 200 and isinstance(content, dict) else None

    async def stream(
        self, body: WireBody, deadline_s: float, key: str, instead: Instead | None = None
    ) -> AsyncGenerator[Event, None]:
        """Send a request that was encoded with `stream` set, and yield its events as they arrive, each once.

        It is retried also when the connection breaks within the answer. All tries have one Idempotency-Key, so the
        server generates once and sends its answer from the start; events that were yielded already are compared and
        skipped.

        Args:
            deadline_s: seconds for everything, retries and answer.
            key: the Idempotency-Key; the server continues to generate when this is closed early, until `forget`.
            instead: called when a try is refused, also one within the answer: the same request in another form, which
                is sent at once, or None to give up.

        Raises:
            ServerUnavailableError: not reached, or the answer not complete, within the deadline; or the server
                restarted and began another answer.
            RefusedError: the server refused the request.
        """
        post = _Post(f"{self.server}/v1/generate", body, deadline_s, key)
        received: list[str] = []
        backoff = Backoff(post.ends)
        while True:
            received_before, complete = len(received), False
            try:
                async with aclosing(self._events(post, received)) as events:
                    async for event in events:
                        yield event
                        complete = event.final is not None
                return
            except RefusedError as error:
                other = None if instead is None else instead(error)
                if other is None:
                    raise
                post.body = other
            except RetryableError as error:
                if complete:  # only the end of the connection was lost
                    return
                if len(received) > received_before:
                    backoff = Backoff(post.ends)
                await backoff.pause(error)

    async def event_data(self, path: str, body: WireBody, deadline_s: float) -> AsyncGenerator[str, None]:
        """POST a body and yield the data of the answer's events, without the last, `[DONE]`.

        For servers without Idempotency-Keys: once the answer has begun the request is not sent again, because the
        second answer may differ.

        Raises:
            ServerUnavailableError, RefusedError: as `stream`.
        """
        post = _Post(f"{self.server}{path}", body, deadline_s)
        backoff = Backoff(post.ends)
        while True:
            try:
                response = await self._open(post)
                break
            except RetryableError as error:
                await backoff.pause(error)
        try:
            async with aclosing(self._data(response, post)) as events:
                async for data in events:
                    yield data
        except RetryableError as broken:
            raise broken.cause from None

    def forget(self, key: str) -> None:
        """Delete this answer on the server, in the background. If the server cannot be reached, it cancels a generation
        without a client by itself after `abandoned_s`."""

        async def delete() -> None:
            with suppress(httpx.HTTPError):
                await self._http.delete(f"{self.server}/v1/generate", headers={HEADER: key}, timeout=FAREWELL_SECONDS)

        task = asyncio.get_running_loop().create_task(delete())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _events(self, post: _Post, received: list[str]) -> AsyncGenerator[Event, None]:
        """One try: the events after those whose data is in `seen`, which grows with them."""
        response = await self._open(post)
        position = 0
        async with aclosing(self._data(response, post)) as events:
            async for data in events:
                event = self._event(data, response.status_code)
                if position < len(received):
                    if data != received[position]:
                        raise self._another_answer()
                    position += 1
                    continue
                if event.final is None:
                    received.append(data)
                    position += 1
                yield event

    async def _data(self, response: httpx.Response, post: _Post) -> AsyncGenerator[str, None]:
        """The data of the events of an open answer, until `[DONE]`; the answer is closed at the end."""
        async with aclosing(response), aclosing(EventSource(response).aiter_sse()) as events:
            while (event := await self._next(events, post)).data != DONE:
                if event.data:
                    yield event.data

    async def _next(self, events: AsyncGenerator[ServerSentEvent, None], post: _Post) -> ServerSentEvent:
        try:
            return await asyncio.wait_for(events.__anext__(), post.left)
        except StopAsyncIteration:
            raise RetryableError(broken_off(self.server, None)) from None
        except asyncio.TimeoutError:
            raise self._too_late(post) from None
        except httpx.HTTPError as error:
            raise RetryableError(broken_off(self.server, error)) from None

    @staticmethod
    def _event(data: str, status: int) -> Event:
        try:
            return event_of(data, status)
        except ContractError as error:
            # It stops, or a client cancelled: the next try starts a new generation.
            if error.code == ServerUnavailableError.code:
                raise RetryableError(error) from None
            raise

    async def _open(self, post: _Post) -> httpx.Response:
        """One try: the open answer."""
        headers = post.body.headers | outgoing_headers()
        if post.key:
            headers[HEADER] = post.key

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in post.body.buffers:
                yield cast("bytes", chunk)  # a memoryview is as good, and no copy

        silence_s = self._silence_s if post.key else None
        head_s = None if silence_s is None else BEFORE_IT_BEGINS * silence_s
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS, read=head_s)
        try:
            message = self._http.build_request("POST", post.url, content=chunks(), headers=headers, timeout=timeout)
            response = await asyncio.wait_for(self._http.send(message, stream=True), post.left)
        except asyncio.TimeoutError:
            raise RetryableError(unreachable(self.server, TimeoutError())) from None
        except httpx.InvalidURL as error:
            raise unreachable(self.server, error) from None
        except httpx.HTTPError as error:
            raise RetryableError(unreachable(self.server, error)) from None
        self.let_in = response.status_code not in NOT_LET_IN
        if response.status_code < 400:
            self.bandwidth.observe(post.body.size, response.headers.get("server-timing", ""))
            message.extensions["timeout"]["read"] = silence_s  # httpcore reads it again where the answer's body begins
            return response
        try:
            await response.aread()
        except httpx.HTTPError as error:  # cut within the reason
            raise RetryableError(unreachable(self.server, error)) from None
        finally:
            await response.aclose()
        refusal = refused(error_body(response), response.status_code)
        if response.status_code in RETRYABLE_STATUSES:
            retry_after = response.headers.get("retry-after", "")
            raise RetryableError(refusal, float(retry_after) if retry_after.isdigit() else 0.0)
        raise refusal

    def _another_answer(self) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"server {shown_url(self.server)} lost the answer and began another one",
            field="--server",
            remedy="Send the request again.",
        )

    def _too_late(self, post: _Post) -> ServerUnavailableError:
        expected = f"{post.deadline_s:g} s"
        return ServerUnavailableError(
            f"server {shown_url(self.server)} did not finish the answer in time", field="--server", expected=expected
        )


class _Post:
    """One request and its deadline; `key` where it may be sent again within its answer."""

    def __init__(self, url: str, body: WireBody, deadline_s: float, key: str = "") -> None:
        self.url, self.body = url, body
        self.deadline_s, self.key = deadline_s, key
        self.ends = time.monotonic() + deadline_s

    @property
    def left(self) -> float:
        """Seconds until its deadline, for `wait_for`."""
        return max(self.ends - time.monotonic(), 0.001)
