"""A process that reads a line of JSON and answers with one: how benches drive what must not share their process."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from typing import Any, TextIO

from qwen3vl_edge.contract.errors import InputError


class LineProcess:
    """The driver's side. Nothing that it starts outlives `close`.

    Args:
        quiet: what it writes to stderr is dropped.
    """

    def __init__(self, name: str, command: Sequence[str], quiet: bool = False) -> None:
        self._name = name
        pipe = subprocess.PIPE
        stderr = subprocess.DEVNULL if quiet else None
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, text=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, document: Any) -> None:
        """Send one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()

    def receive(self, patience: float | None = None) -> dict[str, Any]:
        """The next answer.

        Raises:
            InputError: none within `patience` seconds, the process has ended, or it answers `{"refused": reason}`.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], patience)[0]:
            raise InputError(f"not ready after {patience:.0f} s", field=self._name)
        line = self._process.stdout.readline()
        if not line:
            raise InputError(f"ended with code {self._process.wait()}", field=self._name)
        reply: dict[str, Any] = json.loads(line)
        if "refused" in reply:
            raise InputError(reply["refused"], field=self._name)
        return reply

    def request(self, document: Any) -> dict[str, Any]:
        """Send one line and wait for its answer.

        Raises:
            InputError: as `receive`.
        """
        self.send(document)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class Answers:
    """The driven side: takes stdout for the answers; what libraries print goes to stderr."""

    def __init__(self) -> None:
        self._stream: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def reply(self, document: dict[str, Any]) -> None:
        """Answer with one line."""
        print(json.dumps(document), file=self._stream, flush=True)

    def refuse(self, error: Exception) -> None:
        """Answer that it cannot be done, and why, in one line."""
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        self.reply({"refused": reason[:300]})
