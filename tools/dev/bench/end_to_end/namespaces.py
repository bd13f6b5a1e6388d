"""A link of one's own: two network namespaces, and an emulated link between them.

The bench's process moves into a namespace of its own (`unshare --net`), its device process into another, so nothing of
the machine's network is touched and all of it is gone when they end. Needs root, `ip`, and /dev/net/tun.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.dev.bench.end_to_end.link_emulator import DEVICE_SIDE, SERVER_SIDE
from qwen3vl_edge.tools.dev.bench.line_process import LineProcess
from qwen3vl_edge.tools.plan.transfer import LinkSpeed

SERVER_ADDRESS, DEVICE_ADDRESS = "10.77.0.1", "10.77.0.2"
_MARK = "QWEN3VL_BENCH_NAMESPACE"


def why_not() -> str | None:
    """What this machine lacks to emulate a link; None where nothing."""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed (util-linux, iproute2)"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return None if os.geteuid() == 0 else "making a network namespace needs root"


def enter(module: str) -> None:
    """Start this program again in a network namespace of its own, unless it is in one.

    Raises:
        InputError: this machine or user cannot.
    """
    if os.environ.get(_MARK):
        _run("ip", "link", "set", "lo", "up")
        return
    if (reason := why_not()) is not None:
        raise InputError(f"no link can be emulated: {reason}", field="link", remedy="Run it as root on Linux.")
    os.environ[_MARK] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", module, *sys.argv[1:]])


class Emulator(LineProcess):
    """The process that carries the packets."""

    def __init__(self) -> None:
        super().__init__("link", [sys.executable, "-m", "qwen3vl_edge.tools.dev.bench.end_to_end.link_emulator"])
        self.receive()  # its interfaces are there

    def shape(self, link: LinkSpeed) -> None:
        """Give the link this rate, and half of the round trip's delay each way."""
        self.request({"mbit": link.mbit, "rtt_s": link.rtt_s})


@contextmanager
def connected(device: int) -> Iterator[Emulator]:
    """Join this namespace and that of a process (started with `unshare --net`)."""
    with closing(Emulator()) as emulator:
        _run("ip", "link", "set", DEVICE_SIDE, "netns", str(device))
        _run("ip", "addr", "add", f"{SERVER_ADDRESS}/24", "dev", SERVER_SIDE)
        _run("ip", "link", "set", SERVER_SIDE, "up")
        inside = ("nsenter", "-t", str(device), "-n", "ip")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "addr", "add", f"{DEVICE_ADDRESS}/24", "dev", DEVICE_SIDE)
        _run(*inside, "link", "set", DEVICE_SIDE, "up")
        yield emulator


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr.strip()[:200]}", field="link")
