"""A candidate's process, seen from the bench: started, asked to run, and what it was refused for."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.dev.bench.encoder.candidate import Peer, Setting
from qwen3vl_edge.tools.dev.bench.encoder.worker import PREPARE
from qwen3vl_edge.tools.dev.bench.line_process import LineProcess

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
    process: LineProcess
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
        reply = self.process.request("run")
        self.peak_bytes = reply["peak_bytes"]
        if timed:
            self.seconds.append(reply["seconds"])
            if reply["device_seconds"] is not None:
                self.device_seconds.append(reply["device_seconds"])


def prepare(peer: Peer, setting: Setting) -> None:
    """Have a peer write what it loads.

    Raises:
        InputError: it could not, with the reason.
    """
    process = _start(peer, setting, {"job": PREPARE})
    try:
        process.receive(PREPARE_SECONDS)
    finally:
        process.close()


def start(peer: Peer, setting: Setting, outputs: Path, patience: float) -> Process:
    """Load a candidate and run it once.

    Raises:
        InputError: it does not load or run here, or not within `patience` seconds.
    """
    process = _start(peer, setting, {"job": "serve", "outputs": str(outputs)})
    try:
        reply = process.receive(patience)
    except InputError:
        process.close()
        raise
    return Process(peer, process, outputs, reply["load_seconds"], reply["first_seconds"])


def _start(peer: Peer, setting: Setting, job: dict[str, Any]) -> LineProcess:
    document = {
        "bundle": str(setting.bundle),
        "model": None if setting.model is None else str(setting.model),
        "grid": str(setting.grid),
        "threads": setting.threads,
        "prepared": str(setting.prepared),
        **job,
    }
    command = [sys.executable, "-m", "qwen3vl_edge.tools.dev.bench.encoder.worker", peer.name, json.dumps(document)]
    return LineProcess(peer.name, command, quiet=True)
