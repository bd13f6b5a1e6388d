"""A stock vLLM on this machine's CPU, on a free port: `vllm serve`, in an environment of its own.

vLLM starts further processes, so what its CPU build from PyPI needs stands in site/sitecustomize.py, which each of them
runs first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwen3vl_edge.tools.server_process import stop
from tests.support.paths import ROOT

ENVIRONMENT = ROOT / ".venv-vllm"
PYTHON = ENVIRONMENT / "bin" / "python"
SITE = ROOT / "tests" / "support" / "vllm" / "site"
needs_vllm = pytest.mark.skipif(
    not (ENVIRONMENT / ".installed").exists(),
    reason="no .venv-vllm: `make vllm-env` makes it on any x86-64 Linux machine",
)
START_SECONDS = 300.0


@contextmanager
def running_vllm(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """Start vLLM on `model` in float32, wait until it is ready, stop it at the end; yields its URL."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(ENVIRONMENT / "bin" / "vllm"), "serve", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]
    command += ["--enable-mm-embeds", *arguments]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment["PYTHONPATH"] = str(SITE)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"vLLM did not start: {log.read_text()[-3000:]}")
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url
    finally:
        stop(process, 30)
