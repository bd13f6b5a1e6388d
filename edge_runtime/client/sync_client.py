"""The device's end of the wire: one POST per encoded request, its tensors sent from their own memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
from httpx_sse import EventSource, SSEError

from qwen3vl_edge.contract.errors import ContractError, ServerUnavailableError
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.server_access import ServerAccess

CONNECT_TIMEOUT_SECONDS = 10.0
NO_CREDENTIALS = ServerAccess()
DONE = "[DONE]"


class RefusedError(ContractError):
    """The server answered with an error object, whose message is passed on.

    Attributes:
        missing: hashes of embeddings that it does not store, if that is the reason.
    """

    code = "refused_by_server"
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """One step of a streamed answer.

    Attributes:
        text: what this step adds to the text; may be empty while a character is incomplete.
        final: the whole answer (`generated_ids`, `text`, `usage`, `timings`, …) on the last event.
    """

    text: str
    final: dict[str, Any] | None = None


def generate(
    server: str, body: WireBody, *, timeout: float = 600.0, access: ServerAccess = NO_CREDENTIALS
) -> dict[str, Any]:
    """Send a request and wait for the whole answer.

    Args:
        access: the token and certificates that the server requires.

    Raises:
        InputError: a file of `access` cannot be used.
        ServerUnavailableError: the server cannot be reached or is not ready.
        RefusedError: the server refused the request; the message has the reason.
    """
    with _post(server, body, timeout, access) as response:
        response.read()
        answer: dict[str, Any] = response.json()
        return answer


def stream(
    server: str, body: WireBody, *, timeout: float = 600.0, access: ServerAccess = NO_CREDENTIALS
) -> Iterator[Event]:
    """Send a request that was encoded with `stream` set, and yield its events as they arrive.

    Raises:
        InputError, ServerUnavailableError, RefusedError: as `generate`, also in the middle of the stream.
    """
    with _post(server, body, timeout, access) as response:
        try:
            for event in EventSource(response).iter_sse():
                if event.data == DONE:
                    return
                if event.data:
                    yield event_of(event.data, response.status_code)
        except httpx.HTTPError as error:
            raise broken_off(server, error) from None
    raise broken_off(server, None)


def event_of(data: str, status: int) -> Event:
    """One server-sent event of an answer, from its data.

    Raises:
        RefusedError, ServerUnavailableError: it is an error.
    """
    event = json.loads(data)
    if "error" in event:
        raise refused(event, status)
    last = "finish_reason" in event  # its text is the whole answer, not an addition to it
    return Event("" if last else event["text"], event if last else None)


def broken_off(server: str, error: httpx.HTTPError | None) -> ServerUnavailableError:
    """A stream that ended before its last event."""
    if isinstance(error, SSEError):
        return ServerUnavailableError(f"server {server} sent no server-sent events ({error})"[:300], field="--server")
    how = f"broke off the answer ({type(error).__name__})" if error is not None else "ended the answer early"
    return ServerUnavailableError(f"server {server} {how}", field="--server")


def unreachable(server: str, error: Exception) -> ServerUnavailableError:
    """No answer at all."""
    return ServerUnavailableError(
        f"server {server} cannot be reached ({_why(error)})",
        field="--server",
        remedy="Start it with: qwen3vl-edge server --model MODEL",
    )


def _why(error: Exception) -> str:
    """The kind of error; for TLS its text too, which names the certificate that is not trusted."""
    name = type(error).__name__
    return f"{name}: {error}"[:200] if "SSL" in str(error) or "certificate" in str(error) else name


class _post:
    """Context of one POST: the open response, or the error that it means."""

    def __init__(self, server: str, body: WireBody, timeout: float, access: ServerAccess) -> None:
        self._server = server
        self._body = body
        self._client = httpx.Client(
            headers=access.headers,
            verify=access.verify(),
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_SECONDS),
        )

    def __enter__(self) -> httpx.Response:
        try:
            message = self._client.build_request(
                "POST",
                f"{self._server.rstrip('/')}/v1/generate",
                content=cast("Iterable[bytes]", iter(self._body.buffers)),  # a memoryview is as good, and no copy
                headers=self._body.headers,
            )
            response = self._client.send(message, stream=True)
            if response.status_code >= 400:
                response.read()
                raise refused(error_body(response), response.status_code)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._client.close()
            raise unreachable(self._server, error) from None
        except BaseException:
            self._client.close()
            raise
        return response

    def __exit__(self, *_: object) -> None:
        self._client.close()


def error_body(response: httpx.Response) -> dict[str, Any]:
    """The error object of a read response, or one made of its status and text."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return body
    return {"error": {"message": f"the server answered {response.status_code} {response.text[:200]}"}}


def refused(body: dict[str, Any], status: int) -> ContractError:
    """The server's error object as an error of the contract."""
    error = body["error"]
    kind = ServerUnavailableError if status == 503 else RefusedError
    failure = kind(f"the server refused the request: {error.get('message')}", field=error.get("param"))
    failure.code = error.get("code") or failure.code
    if isinstance(failure, RefusedError) and isinstance(missing := error.get("missing"), list):
        failure.missing = tuple(str(name) for name in missing)
    failure.status = status if status >= 400 else 502  # 200: the error came in the middle of a stream
    return failure
