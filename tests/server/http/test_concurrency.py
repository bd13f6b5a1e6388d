"""What one client may have going on at once: generations that nobody reads count too; and how often it may delete."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import Counter

from qwen3vl_edge.contract.wire.codec import encode_request
from qwen3vl_edge.server.engines.protocol import GenerateResult
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.generation.keyed import KeyedGenerations
from qwen3vl_edge.server.generation.live_generation import LiveGeneration, TokenLog
from qwen3vl_edge.server.http.access import DELETES_PER_REQUEST
from qwen3vl_edge.server.http.tokens import add_token
from qwen3vl_edge.server.options import ServerOptions
from tests.support.http_api.app import CASE, App, reference_engine
from tests.support.http_api.generate import key_headers

SHORT = bytes(encode_request(CASE.request))


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with reference_engine() as engine:
        yield engine


def test_a_generation_whose_reader_left_counts(engine: TransformersEngine, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    one = add_token(tokens, "one")
    tokens.write_text(tokens.read_text() + "max_concurrent = 1\n")
    two = add_token(tokens, "two")
    tokens.write_text(tokens.read_text() + "max_concurrent = 1\n")
    app = App(engine, tokens_file=tokens)
    cancelled: list[str] = []

    async def begin_and_leave(key: str) -> None:
        """As a request does whose client disconnects; its generation does not end by itself."""

        def start() -> LiveGeneration:
            return LiveGeneration(Future[GenerateResult](), TokenLog(), lambda: cancelled.append(key))

        _, leave = app.state.keyed.attach(key, b"digest", start, "one")
        leave()

    def status(token: str, key: str) -> int:
        return app("POST", "/v1/generate", token, headers=key_headers(key), content=SHORT).status_code

    asyncio.run(begin_and_leave("first"))
    refused = app("GET", "/v1/models", one)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_concurrent")
    assert status(one, "second") == 429
    assert status(one, "first") == 409, "who would join is let in, here to hear that it is another request"
    assert status(two, "second") == 200, "another client is not concerned"
    assert app("DELETE", "/v1/generate", one, headers=key_headers("first")).status_code == 204
    assert cancelled == ["first"]
    assert status(one, "second") == 200


def test_what_is_read_or_ended_does_not_count_as_unread() -> None:
    async def change() -> None:
        keyed = KeyedGenerations(ServerOptions(model="m"), Counter("outcomes", "", ["outcome"], registry=None))
        ended: Future[GenerateResult] = Future()
        for key, future in (("a", ended), ("b", Future[GenerateResult]())):
            _, leave = keyed.attach(key, b"digest", partial(LiveGeneration, future, TokenLog(), lambda: None), "one")
            leave()
        assert (keyed.unread("one"), keyed.unread("one", "a"), keyed.unread("one", "c")) == (2, 1, 2)
        assert keyed.unread("two") == 0
        _, leave = keyed.attach("b", b"digest", pytest.fail, "one")
        assert keyed.unread("one") == 1
        ended.set_exception(ValueError())
        while keyed.unread("one"):
            await asyncio.sleep(0)
        leave()
        assert keyed.unread("one") == 1
        keyed.forget("b", "one")
        assert keyed.unread("one") == 0

    asyncio.run(change())


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
