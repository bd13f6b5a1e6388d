"""Starts servers, daemons and commands as forks of a process that has imported torch and transformers already.

Importing them takes eight seconds of CPU time on a small machine, a hundred times in one run of the tests. A fork is a
process of its own all the same: it gets its arguments, environment and log, and ends by signals and exit codes.
Whatever such a fork could not be trusted with is started anew: another environment, another program.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tests.support.paths import ROOT

IMPORTED = (
    "qwen3vl_edge.server.app",
    "qwen3vl_edge.server.engines.transformers.engine",
    "qwen3vl_edge.edge_runtime.edge",
    "qwen3vl_edge.edge_runtime.daemon.app",
    "qwen3vl_edge.tools.cli.main",
    "torch",
    "transformers.models.qwen3_vl.processing_qwen3_vl",
    "transformers.models.qwen3_vl.video_processing_qwen3_vl",
    "qwen_vl_utils",
    "uvloop",
)
# Variables that may differ: what reads them does so after the imports.
OWN_VARIABLES = ("QWEN3VL_", "PYTEST_", "OTEL_", "TORCHINDUCTOR_CACHE_DIR", "PATH", "NOTIFY_SOCKET", "WATCHDOG_")


class ForkedProcess:
    """What tests use of a `subprocess.Popen`, for a fork of another process: its monitor tells how it ended."""

    def __init__(self, args: Sequence[str], told: int) -> None:
        self.args = args
        self.returncode: int | None = None
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        return self.returncode if self.returncode is not None else self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._told.readline() or -signal.SIGKILL)
            self._told.close()
        return self.returncode


class ForkServer:
    """The process that is forked; it starts with the first fork."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], *, stdout: Any, stderr: Any, env: dict[str, str] | None = None) -> Any:
        """As `subprocess.Popen`, and something very like it."""
        environment = dict(os.environ if env is None else env)
        if not self._serves(command, environment):
            return subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env)
        read, write = os.pipe()
        try:
            asked = json.dumps({"command": command[1:], "environment": environment, "cwd": os.getcwd()}).encode()
            with self._lock:
                if self._process is None:
                    self._open()
                socket.send_fds(self._channel, [asked], [stdout.fileno(), stderr.fileno(), write])
        finally:
            os.close(write)
        return ForkedProcess(command, read)

    def close(self) -> None:
        """No more forks; those that run go on."""
        if self._process is not None:
            self._channel.close()
            self._process.wait()

    def _open(self) -> None:
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.support.warm_start", str(other.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[other.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL)
        other.close()

    def _serves(self, command: Sequence[str], environment: dict[str, str]) -> bool:
        python = command[0] == sys.executable and (command[1] == "-c" or list(command[1:3]) == ["-m", "qwen3vl_edge"])
        return python and _at_import(environment) == _at_import(self._environment)


def _at_import(environment: dict[str, str]) -> dict[str, str]:
    """What the imports may depend on."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OWN_VARIABLES)}
    folders = kept.pop("PYTHONPATH", "").split(os.pathsep)
    return {**kept, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder not in ("", str(ROOT)))}


def serve(channel: socket.socket) -> None:
    """Fork for each message, until the other end is closed; returns in the forks alone, to run what was asked for."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 2**20, 3)
        while a_monitor_has_ended():
            pass
        if not message:
            sys.exit(0)
        out, error, told = descriptors
        if os.fork() == 0:
            child = os.fork()
            if child == 0:
                channel.close()
                os.close(told)
                become(json.loads(message), out, error)
                return
            watch(child, told)
        for descriptor in descriptors:
            os.close(descriptor)


def a_monitor_has_ended() -> bool:
    """Whether there is one, which is then forgotten."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def watch(child: int, told: int) -> None:
    """Tell the child's number, then its exit code; does not return."""
    os.write(told, b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody asks any more
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(asked: dict[str, Any], out: int, error: int) -> None:
    """Take over a new process's arguments, environment, folder and log."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(error, 2)
    os.close(out)
    os.close(error)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["command"]


def run(command: list[str]) -> None:
    """As the interpreter does with `-c CODE …` and `-m MODULE …`."""
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [command[1], *command[2:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    gc.collect()
    # Walked over, and at the end of each fork taken down, every page of them would be copied.
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
    run(sys.argv)
