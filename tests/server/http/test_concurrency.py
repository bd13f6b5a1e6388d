"""What one client may have going on at once: generations that nobody reads count too; and how often it may delete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.http.access import DELETES_PER_REQUEST
from qwen3vl_edge.server.http.tokens import add_token
from qwen3vl_edge.tools.dev.server_thread import serving
from tests.support.http_api.app import CASE, App, reference_engine
from tests.support.http_api.generate import key_headers
from tests.support.waiting import until

LONG = bytes(encode_request(replace(CASE.request, sampling=Sampling(max_new_tokens=4000), stream=True)))
SHORT = bytes(encode_request(CASE.request))


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with reference_engine() as engine:
        yield engine


@contextmanager
def client_with_one(engine: TransformersEngine, folder: Path) -> Iterator[httpx.Client]:
    """A client that may have one request at a time, of a server on a real port."""
    tokens = folder / "tokens.toml"
    token = add_token(tokens, "one")
    tokens.write_text(tokens.read_text() + "max_concurrent = 1\n")
    app = App(engine, tokens_file=tokens, abandoned_s=600)
    with (
        serving(app.app) as port,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {token}"}, timeout=60
        ) as client,
    ):
        yield client
        client.delete("/v1/generate", headers=key_headers("first"))


def test_a_generation_whose_reader_left_counts(engine: TransformersEngine, tmp_path: Path) -> None:
    with client_with_one(engine, tmp_path) as client:

        def begin(key: str) -> int:
            """Read the first event and leave."""
            with client.stream("POST", "/v1/generate", content=LONG, headers=key_headers(key)) as response:
                if response.status_code == 200:
                    next(response.iter_lines())
                return response.status_code

        def status(key: str) -> int:
            return client.post("/v1/generate", content=SHORT, headers=key_headers(key)).status_code

        assert begin("first") == 200
        until(lambda: status("second") == 429)
        assert client.get("/v1/models").status_code == 429
        assert begin("first") == 200, "who joins its own is let in"
        until(lambda: status("second") == 429)
        assert client.delete("/v1/generate", headers=key_headers("first")).status_code == 204
        until(lambda: status("second") == 200)


def test_deletes_have_a_larger_limit_of_their_own(engine: TransformersEngine, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    token = add_token(tokens, "a")
    app = App(engine, tokens_file=tokens, rate_per_minute=0.01, rate_burst=1)
    assert [app("GET", "/v1/models", token).status_code for _ in range(2)] == [200, 429]
    headers = key_headers("key")
    deleted = [app("DELETE", "/v1/generate", token, headers=headers) for _ in range(DELETES_PER_REQUEST + 1)]
    assert [answer.status_code for answer in deleted] == [204] * DELETES_PER_REQUEST + [429]
    assert f"at most {0.01 * DELETES_PER_REQUEST:g} requests a minute" in deleted[-1].text
    assert [app("DELETE", "/v1/generate", "guess").status_code for _ in range(2)] == [401, 429]


def test_one_machine_has_one_turn_whatever_its_address(engine: TransformersEngine) -> None:
    app = App(engine, rate_per_minute=0.01, rate_burst=1)
    statuses = [app("GET", "/v1/models", address=f"2001:db8::{number}").status_code for number in (1, 2)]
    assert statuses == [200, 429]
