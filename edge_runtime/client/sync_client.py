"""The blocking client: one POST per encoded request, its tensors sent from their own memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
from httpx_sse import EventSource

from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import DONE, Event, broken_off, error_body, event_of, refused, unreachable
from qwen3vl_edge.edge_runtime.client.server_credentials import CONNECT_TIMEOUT_SECONDS, NO_CREDENTIALS, ServerAccess


class Client:
    """One server, for a program that waits for each answer; a context manager.

    It tries once: `AsyncClient` is the one that retries.

    Args:
        access: the token and certificates that the server requires.
        timeout_s: seconds without a byte after which a request fails.

    Raises:
        InputError: a file of `access` cannot be used.
    """

    def __init__(self, server: str, access: ServerAccess = NO_CREDENTIALS, timeout_s: float = 600.0) -> None:
        self.server = server.rstrip("/")
        self._http = httpx.Client(
            headers=access.headers,
            verify=access.verify(),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_SECONDS),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(self, body: WireBody) -> dict[str, Any]:
        """Send a request and wait for the whole answer.

        Raises:
            ServerUnavailableError: the server cannot be reached or is not ready.
            RefusedError: the server refused the request; the message says why.
        """
        with self._post(body) as response:
            try:
                response.read()
            except httpx.HTTPError as error:
                raise unreachable(self.server, error) from None
            answer: dict[str, Any] = response.json()
            return answer

    def stream(self, body: WireBody) -> Iterator[Event]:
        """Send a request that was encoded with `stream` set, and yield its events as they come.

        Raises:
            ServerUnavailableError, RefusedError: as `generate`, also in the middle of the stream.
        """
        with self._post(body) as response:
            try:
                for event in EventSource(response).iter_sse():
                    if event.data == DONE:
                        return
                    if event.data:
                        yield event_of(event.data, response.status_code)
            except httpx.HTTPError as error:
                raise broken_off(self.server, error) from None
        raise broken_off(self.server, None)

    @contextmanager
    def _post(self, body: WireBody) -> Iterator[httpx.Response]:
        """The open answer to one POST, or the error that it stands for."""
        try:
            message = self._http.build_request(
                "POST",
                f"{self.server}/v1/generate",
                content=cast("Iterable[bytes]", iter(body.buffers)),  # a memoryview is as good, and no copy
                headers=body.headers,
            )
            response = self._http.send(message, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(self.server, error) from None
        try:
            if response.status_code >= 400:
                try:
                    response.read()
                except httpx.HTTPError as error:
                    raise unreachable(self.server, error) from None
                raise refused(error_body(response), response.status_code)
            yield response
        finally:
            response.close()
