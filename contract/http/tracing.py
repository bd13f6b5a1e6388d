"""Optional OpenTelemetry traces, one from the device through the server, carried by W3C's `traceparent` header.

Spans are exported where `opentelemetry-sdk` and its OTLP exporter are installed and OTEL_EXPORTER_OTLP_ENDPOINT (or
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set; all other OTEL_ variables are the exporter's own. Without them an
incoming header is forwarded, so that the caller's trace is not interrupted. No span contains a prompt, an answer, a
picture or an embedding.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "traceparent"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_HEADER_FORM = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_incoming: ContextVar[str | None] = ContextVar("traceparent", default=None)
_tracer: Any = None


def start_tracing(service: str) -> bool:
    """Start to export spans, if tracing is configured and its packages are installed; once per process.

    Args:
        service: service name of the spans, unless OTEL_SERVICE_NAME overrides it.

    Returns:
        Whether spans are exported.
    """
    global _tracer
    if _tracer is None and any(os.environ.get(name) for name in ENDPOINTS):
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            return False
        name = os.environ.get("OTEL_SERVICE_NAME", service)
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        _tracer = provider.get_tracer("qwen3vl_edge")
    return _tracer is not None


class TraceMiddleware:
    """A span per HTTP request, as a child of the span in its `traceparent`.

    Args:
        quiet: paths without a span: probes and scrapes.
    """

    def __init__(self, app: ASGIApp, quiet: tuple[str, ...] = ("/healthz", "/readyz", "/metrics")) -> None:
        self._app = app
        self._quiet = frozenset(quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._quiet:
            await self._app(scope, receive, send)
            return
        header = _header(scope)
        token = _incoming.set(header)
        try:
            if _tracer is None:
                await self._app(scope, receive, send)
            else:
                await self._traced(scope, receive, send, header)
        finally:
            _incoming.reset(token)

    async def _traced(self, scope: Scope, receive: Receive, send: Send, header: str | None) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({HEADER: header} if header else {})
        name = f"{scope['method']} {scope['path'][:80]}"
        with _tracer.start_as_current_span(name, parent, SpanKind.SERVER) as span:

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, note)


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """Measure the block as a child of the request's span."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, attributes=attributes):
        yield


def spans_until_now(phases: Mapping[str, float], **attributes: str | int | float) -> None:
    """Record consecutive phases that end now as children of the request's span.

    Args:
        phases: seconds by name, in chronological order.
        attributes: set on each span.
    """
    if _tracer is None:
        return
    start = time.time_ns() - round(sum(phases.values()) * 1e9)
    for name, seconds in phases.items():
        end = start + round(seconds * 1e9)
        _tracer.start_span(name, start_time=start, attributes=attributes).end(end)
        start = end


def outgoing_headers() -> dict[str, str]:
    """Trace headers for a request sent on behalf of the current one."""
    if _tracer is None:
        header = _incoming.get()
        return {HEADER: header} if header else {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


def _header(scope: Scope) -> str | None:
    """The request's `traceparent`; None if it is missing or malformed."""
    for name, value in scope["headers"]:
        if name == HEADER.encode():
            text = value.decode("latin-1")
            return text if _HEADER_FORM.fullmatch(text) else None
    return None
