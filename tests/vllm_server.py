"""A stock vLLM on this machine's CPU, on a free port: its own OpenAI entrypoint over the reference checkpoint.

As a script, in vLLM's environment (`make vllm-env`): declares the operators that torchvision's CPU wheel lacks beside
vLLM's torch, then runs vLLM's entrypoint with the script's arguments.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_SECONDS = 300.0


@contextmanager
def running_vllm(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """Start vLLM on `model` in float32, wait until it is ready, stop it at the end; yields its URL."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(PYTHON), __file__, "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--enable-mm-embeds", *arguments]
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
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
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _declare_operators() -> object:
    """torchvision adds to these operators when it is imported, and fails where nothing has defined them."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if __name__ in ("__main__", "__mp_main__"):  # vLLM's engine is a process that imports this file again
    _LIBRARY = _declare_operators()  # kept: they are gone when it is freed

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
