"""A daemon that packs its embeddings, and all three ways to an answer of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from tests.support.http_api.chat import ask
from tests.support.http_api.jobs import chat, ended, post_job

QUESTIONS = 27  # three of each task
COLOUR = "What colour is the cross?"


def asked_twice_and_as_a_job(
    name: str, tmp_path: Path, bundle: Path, server_url: str, samples: Path
) -> tuple[str, dict[str, Any]]:
    """The answer of a daemon that sends NAME, and its evidence: the same by hash, and as a job."""
    spool = f'spool = "{tmp_path / "jobs.db"}"\n'
    with running_daemon(tmp_path, bundle, server_url, f'precision = "fp32"\nwire_dtype = "{name}"\n{spool}') as daemon:
        first, packed = ask(daemon.url, samples / "colour.png", COLOUR)
        again, by_hash = ask(daemon.url, samples / "colour.png", COLOUR)
        job = ended(daemon, post_job(daemon, chat(samples)).json()["id"])
    assert packed["media"][0]["wire"] == by_hash["media"][0]["wire"] == name
    assert [item["media"][0]["sent"] for item in (packed, by_hash)] == ["tensors", "hash"]
    assert first == again
    assert job["status"] == "done"
    assert job["answer"]["qwen3vl_edge"]["media"][0]["wire"] == name
    return first, packed
