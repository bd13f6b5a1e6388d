"""The answers with fp16 on the wire, against which the other forms of embeddings are held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.tools.dev.daemon_process import running_daemon
from qwen3vl_edge.tools.dev.train_reference.evaluate import answer_all_split
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions
from qwen3vl_edge.tools.parity.end_to_end import Split, open_both
from tests.support.http_api.chat import ask
from tests.support.packed_answers import COLOUR, QUESTIONS


@pytest.fixture(scope="session")
def halves(bundle: Path, reference: Path) -> Iterator[tuple[Split, list[str]]]:
    """The split with fp16 on the wire, and its answers."""
    with open_edge(bundle, EdgeOptions(backend_options=BackendOptions(precision="fp32"))) as edge:
        split = open_both(edge, reference)[0]
        yield split, answer_all_split(split, heldout_questions(QUESTIONS))


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, server_url: str, samples: Path
) -> tuple[str, dict[str, Any]]:
    """The answer with fp16 on the wire, and its evidence."""
    with running_daemon(tmp_path_factory.mktemp("plain"), bundle, server_url, 'precision = "fp32"\n') as daemon:
        text, evidence = ask(daemon.url, samples / "colour.png", COLOUR)
    assert "wire" not in evidence["media"][0]
    return text, evidence
