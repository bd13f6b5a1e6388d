"""Server-sent events as bytes: where lines end, what a cut leaves, and how long a silence may be. Both clients."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.client.answers import Event
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from tests.support.http_api.client import stream

BODY = WireBody((memoryview(b"body"),), "application/octet-stream")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
TEXTS = ["plain", "next\u0085line", "line\u2028and paragraph\u2029", "\x0b\x0c\x1c\x1d\x1e", "ümläut 𝄞", " "]
Step = bytes | float
"""Bytes to send, or seconds to send none."""


class Scripted:
    """A server that reads one request per connection and answers it with the script of that connection."""

    def __init__(self, scripts: Sequence[Sequence[Step]]) -> None:
        self._scripts = list(scripts)
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[self.connections]
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection, script), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket, script: Sequence[Step]) -> None:
        with connection:
            request = b""
            while not request.endswith(b"\r\n\r\nbody"):
                request += connection.recv(65536)
            try:
                for step in script:
                    if isinstance(step, float):
                        time.sleep(step)
                    else:
                        connection.sendall(step)
            except ConnectionError:
                pass  # the client gave up

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def scripted(*scripts: Sequence[Step]) -> Iterator[Scripted]:
    server = Scripted(scripts)
    threading.Thread(target=server.serve, daemon=True).start()
    try:
        yield server
    finally:
        server.close()


def event(text: str, end: str = "\n") -> bytes:
    return f"data: {json.dumps({'text': text}, ensure_ascii=False)}{end}{end}".encode()


def final(end: str = "\n") -> bytes:
    return f'data: {{"finish_reason": "stop", "text": ""}}{end}{end}data: [DONE]{end}{end}'.encode()


def with_sync(url: str) -> list[Event]:
    return list(stream(url, BODY))


def with_async(url: str, silence_s: float = 45.0, deadline_s: float = 30.0) -> list[Event]:
    async def run() -> list[Event]:
        async with AsyncClient(url, silence_s=silence_s) as client:
            return [event async for event in client.stream(BODY, deadline_s, "key")]

    return asyncio.run(run())


def texts(events: list[Event]) -> list[str]:
    assert events[-1].final is not None
    return [event.text for event in events[:-1]]


both = pytest.mark.parametrize("ask", [with_sync, with_async])


@both
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 3, 10**6])
def test_lines_end_with_lf_cr_and_crlf_and_nothing_else(ask: Callable[[str], list[Event]], end: str, size: int) -> None:
    content = b"".join(event(text, end) for text in TEXTS) + f": a comment{end}{end}".encode() + final(end)
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    with scripted([HEAD, *pieces]) as server:
        assert texts(ask(server.url)) == TEXTS


@both
def test_what_is_no_event_stream_is_named(ask: Callable[[str], list[Event]]) -> None:
    page = [HEAD.replace(b"event-stream", b"html"), b"<html>"]
    with scripted(*[page] * 100) as server, pytest.raises(ServerUnavailableError, match=r"no server-sent.*text/html"):
        ask(server.url) if ask is with_sync else with_async(server.url, deadline_s=0.5)


@pytest.mark.parametrize("rest", [b'data: {"text": "ca', b'data: {"text": "cat"}', b'data: {"text": "cat"}\n'])
def test_an_event_that_is_cut_is_none(rest: bytes) -> None:
    """It comes whole with the next try, and once."""
    with scripted([HEAD, event("The "), rest], [HEAD, event("The "), event("cat"), final()]) as server:
        assert texts(with_async(server.url)) == ["The ", "cat"]
        assert server.connections == 2
    with scripted([HEAD, event("The "), rest]) as server, pytest.raises(ServerUnavailableError, match="ended"):
        with_sync(server.url)


def test_a_silent_answer_is_given_up_after_the_silence_and_no_later() -> None:
    """Four times the silence, which is waited for an answer to begin, would be beyond the deadline."""
    silence_s = 2.0
    with scripted([HEAD, event("The "), 60.0], [HEAD, event("The "), event("cat"), final()]) as server:
        assert texts(with_async(server.url, silence_s, deadline_s=3.5 * silence_s)) == ["The ", "cat"]
        assert server.connections == 2


def test_comments_and_a_slow_start_are_no_silence() -> None:
    silence_s = 1.0
    comments: list[Step] = [step for _ in range(8) for step in (silence_s / 4, b": waiting\n\n")]
    with scripted([2 * silence_s, HEAD, *comments, event("The cat"), final()]) as server:
        assert texts(with_async(server.url, silence_s)) == ["The cat"]
        assert server.connections == 1
