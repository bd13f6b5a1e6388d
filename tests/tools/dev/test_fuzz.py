"""A short run of the fuzzer, and that it would see what it looks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from qwen3vl_edge.contract.errors import ContractError, WireError
from qwen3vl_edge.contract.formats.strict_json import strict_object
from qwen3vl_edge.contract.wire.codec import decode_request
from qwen3vl_edge.contract.wire.request import Limits, Sampling
from qwen3vl_edge.server.http.audit import RequestRecord
from qwen3vl_edge.tools.dev.fuzz.asgi import Answer
from qwen3vl_edge.tools.dev.fuzz.mutate import mutant
from qwen3vl_edge.tools.dev.fuzz.run import Fuzz, _judge, failed, fuzz, server_under_test
from tests.support.server_checkpoint import make_case
from tests.support.wire_bodies import body_of, with_header


@pytest.fixture(scope="module")
def tested(reference: Path) -> Iterator[Fuzz]:
    with server_under_test(str(reference)) as running:
        yield running


@pytest.mark.parametrize("bodies", [1500, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutants_are_answered_as_they_should_be(tested: Fuzz, bodies: int) -> None:
    row = asyncio.run(fuzz(tested, bodies, seed=11))
    assert row["faults"] == []
    assert row["answers_unchanged"]
    assert row["bodies"] == bodies
    assert row["over_a_port"] == bodies // 20
    assert {"200", "400", "401", "404", "405", "409", "413", "415", "422"} <= set(row["statuses"])
    assert row["memory_growth"] < 1.05
    assert failed({**row, "answers_unchanged": False})


def test_a_mutant_is_the_same_for_its_seed_and_number(tested: Fuzz) -> None:
    made = [mutant(tested.targets, 1, index) for index in range(200)]
    assert made == [mutant(tested.targets, 1, index) for index in range(200)]
    assert made != [mutant(tested.targets, 2, index) for index in range(200)]
    assert len({item.target.name for item in made}) > 8


def test_what_is_wrong_is_seen(tested: Fuzz) -> None:
    made = next(item for item in (mutant(tested.targets, 1, index) for index in range(99)) if item.method == "POST")
    named = {"x-request-id": "1", "content-type": "text/event-stream"}
    error = json.dumps({"error": {"code": "c", "message": "m"}}).encode()
    for answer, right in (
        (Answer(400, named, error), True),
        (Answer(200, named, b"{}"), True),
        (Answer(500, named, error), False),
        (Answer(503, named, error), False),
        (Answer(400, {}, error), False),
        (Answer(400, named, b"no"), False),
        (Answer(200, named, b'data: {"error": {"code": "internal_error"}}'), False),
        (Answer(0, named, b"", ValueError("x")), False),
    ):
        assert (not _judge(made, answer, False, tested.tally.codes)) == right, answer


GOOD = body_of(make_case("one image").request)


def test_what_the_fuzzer_found_stays_refused() -> None:
    def put(shape: list[Any]) -> bytes:
        def edit(table: dict[str, Any]) -> None:
            end = max(item["data_offsets"][1] for name, item in table.items() if name != "__metadata__")
            table["extra"] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end]}

        return with_header(GOOD, edit)

    def text(old: bytes, new: bytes) -> bytes:
        length = int.from_bytes(GOOD[:8], "little")
        header = GOOD[8 : 8 + length].replace(old, new, 1)
        assert header != GOOD[8 : 8 + length]
        return len(header).to_bytes(8, "little") + header + GOOD[8 + length :]

    length = int.from_bytes(GOOD[:8], "little")
    wide = GOOD[8 : 8 + length].decode().encode("utf-16")
    for name, body in (
        ("too many elements", put([0, 2**70])),
        ("too many elements", put([2**40, 2**40, 0])),
        ("not JSON", text(b'"shape":[', b'"shape":[' + b"9" * 5000 + b",")),
        ("not JSON", text(b'\\"version\\":1', b'\\"version\\":' + b"1" * 5000)),
        ("not JSON", text(b'\\"request_id\\":\\"', b'\\"request_id\\":\\"\\\\ud800')),
        ("not JSON", text(b"input_ids", b"input_\xed\xa0\x80ids")),
        ("not JSON", len(wide).to_bytes(8, "little") + wide + GOOD[8 + length :]),
        ("repeats a name", text(b'{\\"version\\":1', b'{\\"version\\":1,\\"version\\":1')),
    ):
        with pytest.raises(WireError, match=name):
            decode_request(body)
    assert strict_object('{"a": "\\ud83d\\ude00"}', "x") == {"a": "😀"}


def test_floats_without_a_point_are_floats() -> None:
    for name in ("repetition_penalty", "temperature", "top_p", "min_p"):
        found = getattr(Sampling.from_dict({name: 1}), name)
        assert (type(found), found) == (float, 1.0)
    assert Sampling.from_dict({"min_p": None}).min_p is None


def test_a_sender_that_broke_http_is_gone_and_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """A body whose chunks are none: the parser has answered for itself when the application does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("too late", 400)(scope, receive, send)

    class ParserError(Exception):
        """Each HTTP parser has its own."""

    async def send(message: Any) -> None:
        raise ParserError("can't handle event type Response when role=SERVER and state=MUST_CLOSE")

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def there() -> Any:
        await asyncio.sleep(60)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(RequestRecord(app, None)(scope, gone, send))
    assert scope["state"]["error_code"] == "client_left"
    assert not caplog.records
    with pytest.raises(ParserError):  # while it is there, the fault is the application's
        asyncio.run(RequestRecord(app, None)(scope, there, send))


def test_a_mask_is_measured_before_it_is_widened() -> None:
    import tracemalloc

    import numpy as np

    from qwen3vl_edge.contract.formats.safetensors_layout import build_header

    size = 8 * 2**20
    document = json.dumps({"version": 1, "media": []})
    header = build_header([("input_ids", "I64", (1,)), ("attention_mask", "U8", (size,))], {"request": document})
    body = header + np.zeros(1, np.int64).tobytes() + bytes(size)
    many = build_header([("input_ids", "I32", (size // 4,))], {"request": document}) + bytes(size)
    tracemalloc.start()
    try:
        for made in (body, many):
            with pytest.raises(ContractError):
                decode_request(made, Limits(max_prompt_tokens=1000))
        assert tracemalloc.get_traced_memory()[1] < size // 4
    finally:
        tracemalloc.stop()
