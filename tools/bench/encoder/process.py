"""A candidate's process, seen from the bench: started, asked to run, and what it was refused for."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import InputError
from tools.bench.encoder.candidate import Peer, Setting
from tools.bench.encoder.worker import PREPARE

PREPARE_SECONDS = 1800.0


@dataclass
class Process:
    """A loaded candidate, and what it has shown so far.

    Attributes:
        load_seconds: from nothing imported to the encoder loaded.
        first_seconds: of the first picture, which loads, compiles and lays out what was left for it.
        seconds, device_seconds: of each timed run.
        peak_bytes: the most that the process has held.
        outputs: file with the first picture's outputs, float32.
    """

    peer: Peer
    process: subprocess.Popen[str]
    outputs: Path
    load_seconds: float
    first_seconds: float
    seconds: list[float] = field(default_factory=list)
    device_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def run(self, timed: bool) -> None:
        """Encode the picture once.

        Raises:
            InputError: the process has ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        found = _answer(self.peer, self.process, None)
        self.peak_bytes = found["peak_bytes"]
        if timed:
            self.seconds.append(found["seconds"])
            if found["device_seconds"] is not None:
                self.device_seconds.append(found["device_seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def prepare(peer: Peer, setting: Setting) -> None:
    """Have a peer write what it loads.

    Raises:
        InputError: it could not, with the reason.
    """
    process = _start(peer, setting, {"job": PREPARE})
    try:
        _answer(peer, process, PREPARE_SECONDS)
    finally:
        process.kill()
        process.wait()


def start(peer: Peer, setting: Setting, outputs: Path, patience: float) -> Process:
    """Load a candidate and run it once.

    Raises:
        InputError: it does not load or run here, or not within `patience` seconds.
    """
    process = _start(peer, setting, {"job": "serve", "outputs": str(outputs)})
    try:
        found = _answer(peer, process, patience)
    except InputError:
        process.kill()
        process.wait()
        raise
    return Process(peer, process, outputs, found["load_seconds"], found["first_seconds"])


def _start(peer: Peer, setting: Setting, job: dict[str, Any]) -> subprocess.Popen[str]:
    document = {
        "bundle": str(setting.bundle),
        "model": None if setting.model is None else str(setting.model),
        "grid": str(setting.grid),
        "threads": setting.threads,
        "prepared": str(setting.prepared),
        **job,
    }
    command = [sys.executable, "-m", "tools.bench.encoder.worker", peer.name, json.dumps(document)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def _answer(peer: Peer, process: subprocess.Popen[str], patience: float | None) -> dict[str, Any]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], patience)[0]:
        raise InputError(f"not ready after {patience:.0f} s", field=peer.name)
    line = process.stdout.readline()
    if not line:
        raise InputError(f"ended with code {process.wait()}", field=peer.name)
    found: dict[str, Any] = json.loads(line)
    if "refused" in found:
        raise InputError(found["refused"], field=peer.name)
    return found
