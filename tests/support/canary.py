"""What nobody may open: a file whose every opening is seen, and a port whose every connection is seen."""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path
from types import TracebackType

_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000  # <sys/inotify.h>


class CanaryFile:
    """Tells whether a file was opened, by any code of any process; used as a context manager."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(_IN_NONBLOCK)
        assert libc.inotify_add_watch(self._queue, os.fsencode(path), _IN_OPEN) >= 0, ctypes.get_errno()

    def __enter__(self) -> CanaryFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._queue)

    def was_opened(self) -> bool:
        """Whether it was, since the last time this was asked."""
        try:
            return bool(os.read(self._queue, 2**16))
        except BlockingIOError:
            return False


class CanaryPort:
    """Tells whether somebody connected to a port of this machine; used as a context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> CanaryPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def was_reached(self) -> bool:
        """Whether it was, since the last time this was asked; the connection is cut."""
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True
