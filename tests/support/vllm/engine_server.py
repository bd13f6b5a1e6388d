"""This project's server with `--engine vllm`, in vLLM's own environment, on a free port."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3vl_edge.tools.server_process import ServerProcess, stop, wait_until_ready
from tests.support.paths import ROOT
from tests.support.vllm.stock_server import PYTHON, SITE, START_SECONDS

# Tensor and pipeline parallel workers; QWEN3VL_TEST_PARALLEL=1x2 makes it a pipeline.
PARALLEL = tuple(int(size) for size in os.environ.get("QWEN3VL_TEST_PARALLEL", "2x1").split("x"))
SETTINGS = f"""
port = 0
dtype = "float32"
engine = "vllm"
max_batch = 8
max_queue = 16
tensor_parallel = {PARALLEL[0]}
pipeline_parallel = {PARALLEL[1]}
max_model_len = 2048
max_new_tokens = 1024
hold_embeddings_mib = 64
[vllm_args]
enforce_eager = true
block_size = 32
"""


def environment() -> dict[str, str]:
    """What a process in vLLM's environment needs on a machine without a GPU or a network."""
    path = os.pathsep.join([str(ROOT), str(SITE)])
    cores = sorted(os.sched_getaffinity(0))
    bind = f"{cores[0]}|{cores[-1]}"  # one core per worker; vLLM's own choice wants a NUMA node for each
    found = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": bind}
    return {**os.environ, **found, "PYTHONPATH": path}


@contextmanager
def running_vllm_engine(model: Path, scratch: Path, settings: str = SETTINGS) -> Iterator[ServerProcess]:
    """Start the command line's server on `model`, wait until it is ready, stop it at the end."""
    config, log = scratch / "server.toml", scratch / "server.log"
    config.write_text(settings)
    command = [str(PYTHON), "-m", "tests.support.vllm.engine_main", "server"]
    command += ["--config", str(config), "--model", str(model)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=ROOT)
    try:
        yield wait_until_ready(process, log, time.monotonic() + START_SECONDS)
    finally:
        stop(process, 40)
