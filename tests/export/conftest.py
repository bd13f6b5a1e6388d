"""Bundles that a test builds engines into, and Ctrl-C that works under every test runner."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.export.tensorrt.build_engines import build_engines
from qwen3vl_edge.export.tensorrt.build_job import BuildRequest


@pytest.fixture
def fresh(few_buckets: Path, tmp_path: Path) -> Path:
    """A bundle of one test's own."""
    return Path(shutil.copytree(few_buckets, tmp_path / "reference"))


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Whoever starts the tests in the background has SIGINT ignored, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def ada(few_buckets: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with one engine, for Ada GPUs."""
    copy = tmp_path_factory.mktemp("ada") / "reference"
    shutil.copytree(few_buckets, copy)
    build_engines(copy, BuildRequest("desktop-ada", buckets=(Grid(1, 8, 8),)))
    return open_bundle(copy)
