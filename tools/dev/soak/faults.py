"""What goes wrong in a soak: a server that is killed, a network that crawls or breaks, a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.server_process import running_server


@dataclass
class FaultCount:
    """How often each fault was injected."""

    kills: int = 0
    slow: int = 0
    cuts: int = 0
    disk_full: int = 0


class Proxy:
    """The link between daemon and server: passes bytes on, at once or slowly, or cuts what is open."""

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self._target_port = target_port
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: Any) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> int:
        """Close every connection; how many there were."""
        cut = len(self._open)
        for writer in list(self._open):
            writer.transport.abort()
        return cut

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            self._open -= {writer, far_writer}
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(chunk)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


class KilledServer:
    """A server on a fixed port that is killed and started again."""

    def __init__(self, model: Path, port: int) -> None:
        self._options: dict[str, Any] = {"model": str(model), "port": port, "dtype": "float32", "max_queue": 64}
        self._stack = contextlib.ExitStack()
        self._process: Any = None

    def start(self) -> None:
        self._process = self._stack.enter_context(running_server(threads=1, **self._options))

    def kill(self) -> None:
        """kill -9, as power loss or the kernel's out-of-memory killer would."""
        self._process.process.kill()
        self._process.process.wait()
        self._stack.close()

    def close(self) -> None:
        self._stack.close()


class FullDisk:
    """Fills the file system of a folder, and frees it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "filler"

    def fill(self) -> None:
        with contextlib.suppress(OSError), self._file.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65536):
                pass

    def free(self) -> None:
        self._file.unlink(missing_ok=True)


@dataclass
class Faults:
    """Injects faults at random until cancelled.

    Attributes:
        every_s: mean seconds between two faults.
    """

    server: KilledServer
    proxy: Proxy
    disk: FullDisk | None
    every_s: float
    rng: random.Random
    count: FaultCount = field(default_factory=FaultCount)
    log: list[tuple[float, str]] = field(default_factory=list)

    async def run(self) -> None:
        kinds = ["kill", "slow", "cut"] + (["disk"] if self.disk is not None else [])
        try:
            while True:
                await asyncio.sleep(self.rng.uniform(0.5, 1.5) * self.every_s)
                kind = self.rng.choice(kinds)
                self.log.append((time.monotonic(), kind))
                await getattr(self, f"_{kind}")()
        finally:
            self.proxy.delay_s = 0.0
            if self.disk is not None:
                self.disk.free()

    async def _kill(self) -> None:
        self.count.kills += 1
        await asyncio.to_thread(self.server.kill)
        try:
            await asyncio.sleep(self.rng.uniform(0, 5))
        finally:  # also at the end of the soak: jobs still wait for the server
            await asyncio.shield(asyncio.to_thread(self.server.start))

    async def _slow(self) -> None:
        self.count.slow += 1
        self.proxy.delay_s = self.rng.uniform(0.05, 0.5)
        await asyncio.sleep(self.rng.uniform(2, 10))
        self.proxy.delay_s = 0.0

    async def _cut(self) -> None:
        self.count.cuts += self.proxy.cut()

    async def _disk(self) -> None:
        assert self.disk is not None
        self.count.disk_full += 1
        await asyncio.to_thread(self.disk.fill)
        await asyncio.sleep(self.rng.uniform(2, 10))
        self.disk.free()
