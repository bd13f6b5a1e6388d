"""Packed embeddings through real processes: half the bytes, the same words, and every answer says so."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.soak.faults import Proxy
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all_split
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Split, open_both
from tests.edge_runtime.daemon.test_by_hash import ask
from tests.edge_runtime.daemon.test_jobs import chat as job_chat
from tests.edge_runtime.daemon.test_jobs import ended
from tests.support.daemon_process import running_daemon

QUESTIONS = 48
SHARES = {
    "bf16": 1.1,
    "fp8": 0.56,
    "int8": 0.56,
    "int4": 0.34,
}  # narrow rows: scales and header weigh more
COLOUR = "What colour is the cross?"


@pytest.fixture(scope="module")
def halves(bundle: Path, reference: Path) -> Iterator[tuple[Split, list[str]]]:
    """The split with fp16 on the wire, and its answers."""
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"))) as edge:
        split = open_both(edge, reference)[0]
        yield split, answer_all_split(split, heldout_questions(QUESTIONS))


@pytest.mark.parametrize(("name", "changed"), [("bf16", 2), ("int8", 0), ("fp8", 2), ("int4", 6)])
def test_answers_hold(bundle: Path, halves: tuple[Split, list[str]], name: str, changed: int) -> None:
    split, expected = halves
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype=name)) as edge:
        answers = answer_all_split(split.with_edge(edge), heldout_questions(QUESTIONS))
    assert sum(one != other for one, other in zip(answers, expected, strict=True)) <= changed


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, server_url: str, samples: Path
) -> tuple[str, dict[str, Any]]:
    """The answer with fp16 on the wire, and its evidence."""
    with running_daemon(tmp_path_factory.mktemp("plain"), bundle, server_url, 'precision = "fp32"\n') as daemon:
        text, told = ask(daemon, samples / "colour.png", COLOUR)
    assert "wire" not in told["media"][0]
    return text, told


def asked_twice_and_as_a_job(
    name: str, tmp_path: Path, bundle: Path, server_url: str, samples: Path
) -> tuple[str, dict[str, Any]]:
    """The answer of a daemon that sends NAME, and its evidence: the same by hash, and as a job."""
    spool = f'spool = "{tmp_path / "jobs.db"}"\n'
    with running_daemon(tmp_path, bundle, server_url, f'precision = "fp32"\nwire_dtype = "{name}"\n{spool}') as daemon:
        first, packed = ask(daemon, samples / "colour.png", COLOUR)
        again, by_hash = ask(daemon, samples / "colour.png", COLOUR)
        body: dict[str, Any] = job_chat(samples)
        job = ended(daemon, httpx.post(f"{daemon.url}/v1/jobs", json=body, timeout=60).json()["id"])
    assert packed["media"][0]["wire"] == by_hash["media"][0]["wire"] == name
    assert [item["media"][0]["sent"] for item in (packed, by_hash)] == ["tensors", "hash"]
    assert first == again
    assert job["status"] == "done"
    assert job["answer"]["qwen3vl_edge"]["media"][0]["wire"] == name
    return first, packed


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
        text, told = ask(daemon, samples / "colour.png", COLOUR)
    assert text == plain[0]
    assert told["sent_bytes"] < plain[1]["sent_bytes"]
    assert "wire" not in told["media"][0]


def test_the_daemon_sends_fewer_bytes_once_it_knows_a_slow_link(
    tmp_path: Path, bundle: Path, server_url: str, samples: Path
) -> None:
    """The first request finds out: two milliseconds for each 64 KiB, where one may pass for all."""
    settings = 'precision = "fp32"\nwire_dtype = "auto"\nwire_target_s = 0.001\nsend_by_hash = false\n'
    url = f"data:image/png;base64,{base64.b64encode((samples / 'colour.png').read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}] * 16 + [{"type": "text", "text": COLOUR}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}

    def ask_twice(server: str) -> list[dict[str, Any]]:
        with running_daemon(tmp_path, bundle, server, settings) as daemon:
            return [
                httpx.post(f"{daemon.url}/v1/chat/completions", json=body, timeout=120).json()["qwen3vl_edge"]
                for _ in range(2)
            ]

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
    with pytest.raises(InputError, match="foreign server takes no packed"):
        DaemonConfig(tmp_path, wire_dtype="auto", server_kind="openai")
    with pytest.raises(InputError, match="foreign server takes no compressed"):
        DaemonConfig(tmp_path, wire_zstd=True, server_kind="openai")
    assert DaemonConfig(tmp_path, wire_dtype="fp32", server_kind="openai").wire_dtype == "fp32"


def test_only_the_daemon_chooses(bundle: Path) -> None:
    with pytest.raises(InputError, match="only the daemon knows its link"):
        open_edge(bundle, EdgeOptions(wire_dtype="auto"))
