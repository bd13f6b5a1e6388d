"""The device's end of the wire against a real server, and against one that breaks off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.errors import ServerUnavailableError
from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.ask import build_messages
from qwen3vl_edge.edge_runtime.client.answers import RefusedError, broken_off, unreachable
from qwen3vl_edge.edge_runtime.edge import Edge
from tests.support.http_api.client import generate, stream


def test_whole_and_streamed_answers_are_the_same(edge: Edge, server_url: str, samples: Path) -> None:
    messages = build_messages("What colour is the circle?", [str(samples / "colour.png")], [])
    request = edge.encode(messages, Sampling(max_new_tokens=16)).request
    whole = generate(server_url, encode_request(request))
    events = list(stream(server_url, encode_request(replace(request, stream=True))))
    assert whole["text"]
    assert "".join(event.text for event in events) == whole["text"]
    final = events[-1].final
    assert final is not None
    assert final["generated_ids"] == whole["generated_ids"]


def test_a_refusal_keeps_the_servers_words(edge: Edge, server_url: str, samples: Path) -> None:
    messages = build_messages("What?", [str(samples / "colour.png")], [])
    request = edge.encode(messages).request
    broken = replace(request.media[0], embeds=np.full_like(request.media[0].embeds, np.nan))
    with pytest.raises(RefusedError, match=r"NaN|finite") as refused:
        generate(server_url, encode_request(replace(request, media=(broken,))))
    assert refused.value.field == "embeds.0"


@pytest.fixture
def breaking_server() -> Iterator[str]:
    """Sends the head of a stream and one event, then closes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**20)
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            event = b'data: {"text": "The"}\n\n'
            connection.sendall(head + b"%x\r\n" % len(event) + event + b"\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(10)
    listener.close()


def test_an_answer_that_breaks_off_is_an_error(edge: Edge, breaking_server: str) -> None:
    request = edge.encode([{"role": "user", "content": "Hello!"}]).request
    found = []
    with pytest.raises(ServerUnavailableError, match="broke off"):
        found.extend(event.text for event in stream(breaking_server, encode_request(request)))


def test_errors_repeat_no_password_of_the_servers_url() -> None:
    for error in (
        unreachable("http://user:secret@server:8000/base", OSError()),
        broken_off("http://user:secret@server:8000/base", None),
    ):
        assert "http://server:8000/base" in str(error)
        assert "secret" not in str(error)
