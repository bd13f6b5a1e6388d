"""The device's half as a library: the same calls, blocking and not, and the example in the documentation."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np

from qwen3vl_edge.edge_runtime.ask import Answer, ask, ask_async, build_messages, encode_async
from qwen3vl_edge.edge_runtime.client.async_client import AsyncClient
from qwen3vl_edge.edge_runtime.edge import Edge
from tests.support.paths import ROOT

DOCUMENT = ROOT / "docs" / "guides" / "daemon" / "foreign-servers.md"


def test_both_calls_give_the_same_answer(edge: Edge, server_url: str, samples: Path) -> None:
    messages = build_messages("What colour is the cross?", [str(samples / "colour.png")], [])
    pieces: list[str] = []
    expected = ask(edge, server_url, messages)

    async def twice() -> list[Answer]:
        async with AsyncClient(server_url) as client:
            alone = await ask_async(edge, server_url, messages, on_text=pieces.append)
            return [alone, await ask_async(edge, client, messages)]

    for found in asyncio.run(twice()):
        assert found.generated_ids == expected.generated_ids
        assert set(found.seconds) == set(expected.seconds)
        assert found.text == expected.text
        reused = {"reused_tokens": expected.usage["reused_tokens"]}  # the server held the prompt from the call before
        assert {**found.usage, **reused} == expected.usage
    assert "".join(pieces) == expected.text


def test_both_encodings_are_the_same(edge: Edge, samples: Path) -> None:
    messages = build_messages("What?", [str(samples / "where.png")], [])
    one, other = edge.encode(messages), asyncio.run(encode_async(edge, messages))
    np.testing.assert_array_equal(one.request.media[0].embeds, other.request.media[0].embeds)
    np.testing.assert_array_equal(one.request.input_ids, other.request.input_ids)


def test_the_example_runs(bundle: Path, server_url: str, samples: Path, capsys: object) -> None:
    found = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    example = found[1].replace("BUNDLE", repr(str(bundle))).replace("SERVER", repr(server_url))
    names: dict[str, object] = {}
    exec(compile(example.replace("PICTURE", repr(str(samples / "colour.png"))), str(DOCUMENT), "exec"), names)
    assert isinstance(names["first"], Answer)
    assert isinstance(names["second"], Answer)
    assert names["first"].text == names["second"].text
