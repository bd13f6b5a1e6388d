"""One trace from the client through the daemon to the server, collected by a real OTLP receiver over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from qwen3vl_edge.contract.http.tracing import HEADER, TraceMiddleware, outgoing_headers
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.server_process import running_server
from tests.support.http_api.chat import image, post_chat, user
from tests.support.waiting import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUESTION = "How many shapes do you see?"


class Collector(ThreadingHTTPServer):
    """Takes spans as OTLP's exporters send them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.bodies: list[bytes] = []

    def spans(self) -> dict[str, tuple[str, Any]]:
        """By name: the service and the span."""
        found = {}
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = next(
                    item.value.string_value for item in resource.resource.attributes if item.key == "service.name"
                )
                for scope in resource.scope_spans:
                    found |= {f"{service} {span.name}": (service, span) for span in scope.spans}
        return found


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, Collector)
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.shutdown()
        collector.server_close()


def ask(url: str, picture: Path) -> None:
    body = {"messages": [user(image(picture), QUESTION)], "max_tokens": 8}
    post_chat(url, body, **{HEADER: f"00-{TRACE}-{PARENT}-01"}).raise_for_status()


def test_one_trace_through_both_machines(
    bundle: Path, reference: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with (
            running_server(threads=1, model=str(reference), dtype="float32") as server,
            running_daemon(tmp_path, bundle, server.url) as daemon,
        ):
            ask(daemon.url, samples / "colour.png")
            wanted = {
                "qwen3vl-edge POST /v1/chat/completions",
                "qwen3vl-edge encode",
                "qwen3vl-edge first_token",
                "qwen3vl-server POST /v1/generate",
                "qwen3vl-server queue",
                "qwen3vl-server prefill",
                "qwen3vl-server decode",
            }
            until(lambda: wanted <= collector.spans().keys(), collector.spans)
    spans = collector.spans()
    assert wanted <= spans.keys()
    assert {span.trace_id.hex() for _, span in spans.values()} == {TRACE}
    chat = spans["qwen3vl-edge POST /v1/chat/completions"][1]
    generate = spans["qwen3vl-server POST /v1/generate"][1]
    assert chat.parent_span_id.hex() == PARENT
    assert generate.parent_span_id == chat.span_id
    assert spans["qwen3vl-edge encode"][1].parent_span_id == chat.span_id
    assert spans["qwen3vl-server prefill"][1].parent_span_id == generate.span_id
    said = {item.key: item.value.int_value for item in spans["qwen3vl-server decode"][1].attributes}
    assert said["visual_tokens"] > 0
    assert not any(QUESTION.encode() in body for body in collector.bodies)


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (f"00-{TRACE}-{PARENT}-01", {HEADER: f"00-{TRACE}-{PARENT}-01"}),
        ("nonsense\r\nX-Evil: 1", {}),
        (None, {}),
    ],
)
def test_without_an_exporter_the_header_is_passed_on(sent: str | None, passed_on: dict[str, str]) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(outgoing_headers())

    headers = [(HEADER.encode(), sent.encode())] if sent else []
    asyncio.run(TraceMiddleware(app)({"type": "http", "path": "/", "headers": headers}, None, None))  # type: ignore[arg-type]
    assert seen == [passed_on]
    assert outgoing_headers() == {}
