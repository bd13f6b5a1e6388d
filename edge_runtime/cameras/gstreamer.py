"""Frames of a GStreamer pipeline that `gst-launch-1.0` runs in a process of its own.

Frames have a pipe of their own. stdout (the caps, because of -v) and stderr are read in the same loop, so that neither
fills up and blocks the child; of both only the last bytes are kept.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import subprocess
import time
from collections.abc import Iterator
from threading import Event

import numpy as np

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.cameras.sampling import Frame, Wanted

POLL_SECONDS = 0.1  # how long a set `stop` may go unnoticed
_PIPE_BYTES = 2**16  # capacity of a pipe on Linux: one read empties it
_LOG_BYTES = 4096
_SINK = "qwen3vl_frames"
_CAPS = re.compile(rf"GstFdSink:{_SINK}\.GstPad:sink: caps = video/x-raw.*?width=\(int\)(\d+), height=\(int\)(\d+)")


def gst_frames(pipeline: str, wanted: Wanted, stop: Event, silence: float) -> Iterator[Frame]:
    """Raw RGB of a pipeline until it ends or `stop` is set; closing the generator ends the child.

    Args:
        pipeline: elements up to the one with raw video, in the syntax of gst-launch-1.0.
        silence: seconds without data after which the pipeline counts as dead.

    Raises:
        InputError: it cannot be run, has no frames, fails, stalls, or changes the size of its frames.
    """
    child = _Child(pipeline)
    try:
        yield from _frames(child, wanted, stop, silence)
    finally:
        child.close()


def _frames(child: _Child, wanted: Wanted, stop: Event, silence: float) -> Iterator[Frame]:
    size: tuple[int, int] | None = None
    body, filled, received = bytearray(), 0, time.monotonic()
    while not stop.is_set():
        if not child.wait():
            if time.monotonic() - received > silence:
                raise InputError(f"the GStreamer pipeline sent nothing for {silence:g} s", field="source")
            continue
        if size is None:
            size = _first_size(child, stop, silence)
            if size is None:
                return
            body = bytearray(_stride(size[1]) * size[0])
        count = os.readv(child.frames, [memoryview(body)[filled:]])
        if not count:
            child.check_end()
            return
        filled, received = filled + count, time.monotonic()
        if filled < len(body):
            continue
        filled = 0
        child.check_size()
        if wanted(received):
            rows = np.frombuffer(body, np.uint8).reshape(size[0], -1)
            yield Frame(received, rows[:, : size[1] * 3].reshape(*size, 3).copy())
        received = time.monotonic()


def _first_size(child: _Child, stop: Event, silence: float) -> tuple[int, int] | None:
    """Height and width of the next frames; gst-launch-1.0 may print them after the first bytes. None after `stop`."""
    deadline = time.monotonic() + silence
    while not stop.wait(0.01):
        ended = child.ended
        child.read_output()
        if child.size is not None:
            return child.size
        if ended or time.monotonic() > deadline:
            raise InputError("the GStreamer pipeline gives no frames", field="source", got=child.error_text())
    return None


def _stride(width: int) -> int:
    """Bytes of a row of RGB: GStreamer pads it to four."""
    return (width * 3 + 3) // 4 * 4


class _Child:
    """The running pipeline.

    Attributes:
        frames: the file descriptor of the frames; does not block once `wait` was True.
        size: height and width of the first caps, None before them.

    Raises:
        InputError: gst-launch-1.0 cannot be run.
    """

    def __init__(self, pipeline: str) -> None:
        self.frames, theirs = os.pipe()
        self.size: tuple[int, int] | None = None
        self._resized = False
        self._line = self._stderr = ""
        command = ["gst-launch-1.0", "-v", *shlex.split(pipeline), "!", "videoconvert", "!", "video/x-raw,format=RGB"]
        try:
            self._process = subprocess.Popen(
                [*command, "!", "fdsink", f"name={_SINK}", f"fd={theirs}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs,),
            )
        except OSError as error:
            os.close(self.frames)
            raise InputError(f"gst-launch-1.0 cannot be run ({error.strerror})", field="source") from None
        finally:
            os.close(theirs)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._out, self._err = self._process.stdout, self._process.stderr
        self._selector = selectors.DefaultSelector()
        for pipe in (self.frames, self._out.fileno(), self._err.fileno()):
            os.set_blocking(pipe, False)
            self._selector.register(pipe, selectors.EVENT_READ)

    def wait(self) -> bool:
        """Whether frame data, or its end, came within POLL_SECONDS; also reads the child's output."""
        ready = {key.fd for key, _ in self._selector.select(POLL_SECONDS)}
        if ready:
            self.read_output()
        return self.frames in ready

    def read_output(self) -> None:
        """Read what the child has written to stdout and stderr."""
        lines = (self._line + self._read(self._out.fileno())).split("\n")
        self._line = lines.pop()[-_LOG_BYTES:]
        for line in lines:
            if caps := _CAPS.search(line):
                size = int(caps[2]), int(caps[1])
                self.size = self.size or size
                self._resized = self._resized or self.size != size
        self._stderr = (self._stderr + self._read(self._err.fileno()))[-_LOG_BYTES:]

    def error_text(self) -> str:
        """The first error on stderr, or the last lines of it; without passwords in URLs."""
        lines = self._stderr.splitlines() or [""]
        first = next((i for i, line in enumerate(lines) if "ERROR" in line or "erroneous" in line), len(lines) - 1)
        return re.sub(r"//[^/\s@]*@", "//", " ".join(lines[first : first + 4]))[:400]

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def check_size(self) -> None:
        """Frames are not delimited, so a pipeline whose caps have changed must be started again.

        gst-launch-1.0 prints caps from another thread: a frame that is read at that moment may be garbled.

        Raises:
            InputError: the size has changed.
        """
        self.read_output()
        if self._resized:
            raise InputError("the GStreamer pipeline changed the size of its frames", field="source")

    def check_end(self) -> None:
        """Raises: InputError: the child failed or did not exit."""
        try:
            status: int | None = self._process.wait(1)
        except subprocess.TimeoutExpired:
            status = None
        self.check_size()
        if status:
            raise InputError("the GStreamer pipeline failed", field="source", got=self.error_text())

    def close(self) -> None:
        """Kill the child and close its pipes."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        os.close(self.frames)
        self._out.close()
        self._err.close()

    def _read(self, pipe: int) -> str:
        if pipe not in self._selector.get_map():
            return ""
        try:
            data = os.read(pipe, _PIPE_BYTES)
        except BlockingIOError:
            return ""
        if not data:  # closed: select would report it as ready forever
            self._selector.unregister(pipe)
        return data.decode(errors="replace")
