"""What a server answers, as both clients read it: events of a stream, and errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import SSEError

from qwen3vl_edge.contract.errors import ContractError, ServerUnavailableError
from qwen3vl_edge.contract.formats.shown_url import shown_url

DONE = "[DONE]"


class RefusedError(ContractError):
    """The server answered with an error object, whose message is passed on.

    Attributes:
        missing: hashes of embeddings that it does not hold, where that is the reason.
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
        return ServerUnavailableError(
            f"server {shown_url(server)} sent no server-sent events ({error})"[:300], field="--server"
        )
    how = f"broke off the answer ({type(error).__name__})" if error is not None else "ended the answer early"
    return ServerUnavailableError(f"server {shown_url(server)} {how}", field="--server")


def unreachable(server: str, error: Exception) -> ServerUnavailableError:
    """No answer at all."""
    return ServerUnavailableError(
        f"server {shown_url(server)} cannot be reached ({_why(error)})",
        field="--server",
        remedy="Start it with: qwen3vl-edge server --model MODEL",
    )


def _why(error: Exception) -> str:
    """The kind of error; of TLS its text too, which says whose certificate is not trusted."""
    name = type(error).__name__
    return f"{name}: {error}"[:200] if "SSL" in str(error) or "certificate" in str(error) else name


def error_body(response: httpx.Response) -> dict[str, Any]:
    """The error object of a read response, or one with the status and text that came in its place."""
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
