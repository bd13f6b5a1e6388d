"""Runs the kit's steps, each in a process with a time limit, and writes the document as rows come."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.tools import server_process
from qwen3vl_edge.tools.dev.bench.measurement import rewrite_document
from qwen3vl_edge.tools.dev.gpu.context import Context, read_rows
from qwen3vl_edge.tools.dev.gpu.steps import STEPS
from qwen3vl_edge.tools.dev.gpu.worker import command

POLL_SECONDS = 0.2
DRY_PATIENCE = 6  # times a step's limit, which is a GPU machine's: a CPU may be busy with other tests
TABLES = ("failures", "peaks", "exports", "tests", "parity", "encoder", "server")


@dataclass
class Running:
    """A step, from its start on.

    Attributes:
        state: "running", "done", "failed" or "time limit".
        seconds: that it took so far.
    """

    step: str
    state: str = "waiting"
    seconds: float = 0.0


class Run:
    """One run of the kit.

    Args:
        until: time.monotonic() at which it must be over.
    """

    def __init__(self, steps: Sequence[str], out: Path, context: Context, until: float, log: IO[bytes]) -> None:
        self._out, self._context, self._until, self._log = out / "gpu.json", context, until, log
        self._environment = environment()
        self.states = {step: Running(step) for step in steps}
        self._processes: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._written: object = None

    def run(self) -> None:
        """Run every step; those beside the others one after another, and the others likewise."""
        beside = [step for step in self.states if STEPS[step].beside]
        others = [step for step in self.states if not STEPS[step].beside]
        try:
            while any(state.state in ("waiting", "running") for state in self.states.values()):
                for lane in (beside, others):
                    self._advance(lane)
                self._write()
                time.sleep(POLL_SECONDS)
        finally:
            for step in list(self._processes):
                self._end(step, "stopped")
            self._write()

    def passed(self) -> bool:
        """Whether every step is done, every test passed and parity holds."""
        document = self._document()
        return (
            all(state.state == "done" for state in self.states.values())
            and all(row["passed"] for row in document["parity"] if "passed" in row)
            and not any("failed" in row for row in document["parity"])
            and not any(row["outcome"] in ("failed", "error") for row in document["tests"])
        )

    def _advance(self, lane: list[str]) -> None:
        """Watch the lane's running step, or start its next one."""
        for step in lane:
            if self.states[step].state == "running":
                self._watch(step)
                return
            if self.states[step].state == "waiting":
                if self._ready(step):
                    self._start(step)
                return

    def _ready(self, step: str) -> bool:
        own = STEPS[step]
        needed = map(self.states.get, own.needs if self._context.dry else (*own.needs, *own.after))
        return all(state is None or state.state not in ("waiting", "running") for state in needed)

    def _start(self, step: str) -> None:
        if time.monotonic() >= self._until:
            self.states[step].state = "no time left"
            return
        self._attempts[step] = self._attempts.get(step, 0) + 1
        self._started.setdefault(step, time.monotonic())
        self.states[step].state = "running"
        self._processes[step] = server_process.start_process(
            command(step, self._context), stdout=self._log, stderr=self._log
        )

    def _watch(self, step: str) -> None:
        taken = time.monotonic() - self._started[step]
        self.states[step].seconds = round(taken, 1)
        code = self._processes[step].poll()
        if code is None:
            limit = STEPS[step].seconds * (DRY_PATIENCE if self._context.dry else 1)
            if taken > limit or time.monotonic() > self._until:
                self._end(step, "time limit")
        elif code == 0:
            self._end(step, "done")
        elif code < 0 and self._attempts[step] < STEPS[step].attempts:  # a library ended it with a signal
            self._processes.pop(step)
            self._start(step)
        else:
            self._end(step, f"ended with code {code}" if code != 1 else "failed")

    def _end(self, step: str, state: str) -> None:
        process = self._processes.pop(step)
        if process.poll() is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no session of its own yet
                process.kill()
            process.wait()
        self.states[step].state = state

    def _document(self) -> dict[str, Any]:
        tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        for step in self.states:
            for table, row in read_rows(self._context.rows_file(step)):
                if table in tables:
                    tables[table].append(row)
        return {
            "environment": self._environment,
            "dry": self._context.dry,
            "steps": [asdict(state) for state in self.states.values()],
            **tables,
        }

    def _write(self) -> None:
        document = self._document()
        state = (document["steps"], [len(document[table]) for table in TABLES])
        if state != self._written:
            rewrite_document(self._out, document)
            self._written = state


def run(steps: Sequence[str], out: Path, work: Path, seconds: float, dry: bool, candidates: str = "") -> bool:
    """Run the steps and write OUT/gpu.json and OUT/gpu.log.

    Returns:
        Whether every step is done, every test passed and parity holds.

    Raises:
        InputError: there is no GPU, and it is no dry run.
    """
    if not dry and find_gpu() is None:
        raise InputError(
            "no GPU was found",
            field="gpu",
            expected="an NVIDIA GPU with its driver, and cuda-bindings",
            remedy="Run it where one is, or with --dry.",
        )
    out.mkdir(parents=True, exist_ok=True)
    context = Context(work.absolute(), dry, candidates)
    shutil.rmtree(context.work / "rows", ignore_errors=True)
    with (out / "gpu.log").open("wb") as log:
        kit = Run(steps, out, context, time.monotonic() + seconds, log)
        with contextlib.suppress(KeyboardInterrupt):
            kit.run()
    for state in kit.states.values():
        sys.stderr.write(f"{state.step}: {state.state}, {state.seconds} s\n")
    return kit.passed()
