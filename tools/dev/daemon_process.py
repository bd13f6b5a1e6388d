"""A real daemon in a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from qwen3vl_edge.tools import server_process


@dataclass(frozen=True)
class DaemonProcess:
    """A running daemon."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def running_daemon(
    folder: Path, bundle: Path, server: str, settings: str = "", **environment: str
) -> Iterator[DaemonProcess]:
    """Start `qwen3vl-edge edge` with a settings file, wait until it is ready, stop it at the end.

    Args:
        folder: for its settings and its log.
        server: URL of its server.
        settings: more lines of TOML.

    Raises:
        AssertionError: it did not start; with the end of its log.
    """
    config, log = folder / "edge.toml", folder / "daemon.log"
    config.write_text(f'bundle = "{bundle}"\nserver = "{server}"\nport = 0\n{settings}')
    command = [sys.executable, "-m", "qwen3vl_edge", "edge", "--config", str(config)]
    with log.open("wb") as file:
        process = server_process.start_process(command, stderr=file, stdout=file, env={**os.environ, **environment})
    try:
        yield DaemonProcess(_wait_until_ready(process, log), process, log)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://[^\s;]+(?= answers 503)", log.read_text()):
            try:
                if httpx.get(f"{found[0]}/readyz", timeout=5).status_code == 200:
                    return found[0]
            except httpx.HTTPError:
                pass
        time.sleep(0.05)
    raise AssertionError(f"the daemon did not start: {log.read_text()[-2000:]}")
