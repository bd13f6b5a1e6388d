"""Requests without a port: thousands a second, through all of the application but the HTTP parser."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass(frozen=True)
class Answer:
    """What came back; `fault` is what the application raised, if it did."""

    status: int
    headers: dict[str, str]
    body: bytes
    fault: BaseException | None = None


async def call(app: ASGIApp, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
    """Send one request as a server would hand it on; a length is added where the headers have none."""
    names = {name.lower() for name, _ in headers}
    if not names & {"content-length", "transfer-encoding"}:
        headers = [*headers, ("Content-Length", str(len(body)))]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": ("192.0.2.1", 1),
        "server": ("server", 80),
    }
    half = len(body) // 2
    messages: list[Message] = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:], "more_body": False},
    ]
    gone, sent = asyncio.Event(), bytearray()
    status, headers_sent = 0, {}

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers_sent
        if message["type"] == "http.response.start":
            status = message["status"]
            headers_sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            sent.extend(message.get("body", b""))

    fault: BaseException | None = None
    try:
        await app(scope, receive, send)
    except Exception as error:
        fault = error
    finally:
        gone.set()
    return Answer(status, headers_sent, bytes(sent), fault)
