"""Labels of the server's metrics: from closed sets, and no client is named unless that was asked for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.http.tokens import add_token
from tests.support.http_api.app import CASE, URL, App, reference_engine

# What docs/reference/metrics.md lists.
CLOSED = {
    "kind": {"prompt", "visual", "generated"},
    "finish_reason": {"stop", "length", "cancelled", "error"},
    "phase": {"queue", "prefill", "decode"},
    "outcome": {"started", "joined", "replayed", "conflict"},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with reference_engine() as engine:
        yield engine


def labels_of(app: App) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for name, value in re.findall(r'[{,](\w+)="([^"]*)"', app("GET", "/metrics").text):
        found[name].add(value)
    return found


def test_no_client_is_named_unless_that_was_asked_for(engine: TransformersEngine, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    token = add_token(tokens, "camera-3")
    body = bytes(encode_request(CASE.request))
    for asked in (False, True):
        app = App(engine, tokens_file=tokens, metrics_clients=asked)
        assert app("POST", "/v1/generate", token, content=body).status_code == 200
        text = app("GET", "/metrics").text
        assert f'qwen3vl_edge_tokens_total{{kind="prompt"}} {CASE.request.input_ids.size}.0' in text
        assert ("camera-3" in text) == asked
        assert ("client" in labels_of(app)) == asked


def test_nothing_that_a_client_sends_becomes_a_label(engine: TransformersEngine) -> None:
    app = App(engine)
    body = bytes(encode_request(CASE.request))
    assert app("POST", "/v1/generate", content=body, headers={"Idempotency-Key": "secret"}).status_code == 200
    app("POST", "/v1/generate", content=body[:-1])
    app("POST", "/v1/generate", content=bytes(encode_request(replace(CASE.request, request_id="x" * 999))))
    paths = ("/secret", URL, "/v1/embeddings/secret", "/v1/embeddings/a/b", "/v1/models/secret", "/healthz/", "/%2e%2e")
    for path in paths:
        for method in ("GET", "PUT", "SECRET"):
            app(method, path)
    found = labels_of(app)
    for name, values in found.items():
        assert not any("secret" in value.lower() for value in values), name
    for name, closed in CLOSED.items():
        assert found[name] <= closed
    assert all(re.fullmatch(r"[1-5]\d\d", status) for status in found["status"])
    assert len(found["endpoint"]) <= 10
