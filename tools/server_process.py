"""A real server in a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import qwen3vl_edge
from qwen3vl_edge.contract.errors import ServerUnavailableError

# The folder from which this very package was imported: a child process imports the same one.
PACKAGE_PARENT = Path(qwen3vl_edge.__file__).parent.parent
_INSTALLED = PACKAGE_PARENT in (Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib")))
# The tests fork a process that has imported torch already: tests/support/warm_start.py.
start_process: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
_CODE = """
import json, sys
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.server.main import serve
from qwen3vl_edge.server.options import load_options
options = json.loads(sys.argv[1])
try:
    serve(load_options(None, options, {}))
except ContractError as error:
    sys.exit(f"error: {error}")
"""


@dataclass(frozen=True)
class ServerProcess:
    """A running server; `ready_statuses` are what `/readyz` answered while it started."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_statuses: list[int]


def spawn(log: Path, threads: int | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start a server that logs to `log`, with at most `threads` threads; options as in `running_server`."""
    environment = dict(os.environ)
    if not _INSTALLED:  # site-packages on PYTHONPATH would come before the standard library
        paths = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with log.open("wb") as stream:
        return start_process(
            [sys.executable, "-c", _CODE, json.dumps({"port": 0, "device_map": "cpu", **options}, default=str)],
            env=environment,
            stdout=stream,
            stderr=stream,
        )


@contextmanager
def running_server(
    timeout: float = 120.0, threads: int | None = None, verify: ssl.SSLContext | bool = True, **options: Any
) -> Iterator[ServerProcess]:
    """Start a server, wait until it is ready, stop it at the end.

    Args:
        verify: as httpx has it, for a server with TLS.
        options: of `ServerOptions`; on the CPU and any free port unless told otherwise.

    Raises:
        ServerUnavailableError: it ended, or was not ready in time; with the end of its log.
    """
    scratch = Path(tempfile.mkdtemp(prefix="qwen3vl-server-"))
    log = scratch / "server.log"
    process = spawn(log, threads, **options)
    try:
        yield wait_until_ready(process, log, time.monotonic() + timeout, verify)
    finally:
        stop(process, 20)
        shutil.rmtree(scratch, ignore_errors=True)


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGTERM, and SIGKILL for one that has not ended by then."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(
    process: subprocess.Popen[bytes], log: Path, deadline: float, verify: ssl.SSLContext | bool = True
) -> ServerProcess:
    """Wait for 200 from `/readyz` of the address that a starting server logs.

    Args:
        deadline: on the monotonic clock.

    Raises:
        ServerUnavailableError: it ended, or was not ready in time; with the end of its log.
    """
    statuses: list[int] = []
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerUnavailableError(f"the server ended with {process.returncode}: {log.read_text()[-600:]}")
        if found := re.search(r"(https?://[^\s;]+) answers 503", log.read_text()):
            try:
                statuses.append(httpx.get(f"{found[1]}/readyz", timeout=5, verify=verify).status_code)
            except httpx.HTTPError:
                statuses.append(0)
            if statuses[-1] == 200:
                return ServerProcess(found[1], process, log, statuses)
        time.sleep(0.05)
    raise ServerUnavailableError(f"the server was not ready in time: {log.read_text()[-600:]}")
