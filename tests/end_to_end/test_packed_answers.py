"""Packed embeddings through real processes: half the bytes, the same words, and every answer says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.dev.soak.faults import Proxy
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all_split
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Split
from tests.support.http_api.chat import ask, image, post_chat, user
from tests.support.packed_answers import COLOUR, QUESTIONS, asked_twice_and_as_a_job

SHARES = {
    "bf16": 1.1,
    "fp8": 0.56,
    "int8": 0.56,
    "int8-int4": 0.46,
    "int4": 0.34,
}  # narrow rows: scales and header weigh more


@pytest.mark.parametrize(("name", "changed"), [("bf16", 1), ("int8", 0), ("fp8", 1), ("int8-int4", 1), ("int4", 3)])
def test_answers_hold(bundle: Path, halves: tuple[Split, list[str]], name: str, changed: int) -> None:
    split, expected = halves
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype=name)) as edge:
        answers = answer_all_split(split.with_edge(edge), heldout_questions(QUESTIONS))
    assert sum(one != other for one, other in zip(answers, expected, strict=True)) <= changed


@pytest.mark.parametrize("name", SHARES)
def test_the_daemon_sends_less_and_says_so(
    name: str, tmp_path: Path, bundle: Path, server_url: str, samples: Path, plain: tuple[str, dict[str, Any]]
) -> None:
    text, told = plain
    found, packed = asked_twice_and_as_a_job(name, tmp_path, bundle, server_url, samples)
    if name != "int4":
        assert found == text
    assert packed["sent_bytes"] < SHARES[name] * told["sent_bytes"]


def test_compressed_bodies_bring_the_same_answer(
    tmp_path: Path, bundle: Path, server_url: str, samples: Path, plain: tuple[str, dict[str, Any]]
) -> None:
    with running_daemon(tmp_path, bundle, server_url, 'precision = "fp32"\nwire_zstd = true\n') as daemon:
        text, told = ask(daemon.url, samples / "colour.png", COLOUR)
    assert text == plain[0]
    assert told["sent_bytes"] < plain[1]["sent_bytes"]
    assert "wire" not in told["media"][0]


def test_the_daemon_sends_fewer_bytes_once_it_knows_a_slow_link(
    tmp_path: Path, bundle: Path, server_url: str, samples: Path
) -> None:
    """The first request finds out: two milliseconds for each 64 KiB, where one may pass for all."""
    settings = 'precision = "fp32"\nwire_dtype = "auto"\nwire_target_s = 0.001\nsend_by_hash = false\n'
    body = {"messages": [user(*[image(samples / "colour.png")] * 16, COLOUR)], "max_tokens": 4}

    def ask_twice(server: str) -> list[dict[str, Any]]:
        with running_daemon(tmp_path, bundle, server, settings) as daemon:
            return [post_chat(daemon.url, body, timeout=120).json()["qwen3vl_edge"] for _ in range(2)]

    async def over_a_slow_link() -> list[dict[str, Any]]:
        async with Proxy(int(server_url.rpartition(":")[2])) as proxy:
            proxy.delay_s = 0.002
            return await asyncio.to_thread(ask_twice, f"http://127.0.0.1:{proxy.port}")

    told = asyncio.run(over_a_slow_link())
    assert [item["media"][0].get("wire") for item in told] == [None, "int4"]
    assert told[1]["sent_bytes"] < 0.4 * told[0]["sent_bytes"]


def test_what_cannot_be_sent_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such wire_dtype"):
        DaemonConfig(tmp_path, wire_dtype="int2")
    with pytest.raises(InputError, match="foreign server takes no packed"):
        DaemonConfig(tmp_path, wire_dtype="int8", server_kind="openai")
    with pytest.raises(InputError, match="foreign server takes no compressed"):
        DaemonConfig(tmp_path, wire_zstd=True, server_kind="openai")
    for name in ("fp32", "auto"):
        assert DaemonConfig(tmp_path, wire_dtype=name, server_kind="openai").wire_dtype == name
