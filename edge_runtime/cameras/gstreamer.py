"""Frames of a GStreamer pipeline that `gst-launch-1.0` runs in a process of its own.

Frames have a pipe for themselves. What the child says on stdout (the caps, because of -v) and on stderr is read in the
same loop: neither can fill up and stop the child, and of both only the end is kept.
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
from qwen3vl_edge.edge_runtime.cameras.frame import Frame, Wanted

POLL_SECONDS = 0.1  # how long a set `stop` may go unnoticed
_PIPE_BYTES = 2**16  # what a pipe holds on Linux: one read takes all that was said before
_KEPT_BYTES = 4096
_SINK = "qwen3vl_frames"
_CAPS = re.compile(rf"GstFdSink:{_SINK}\.GstPad:sink: caps = video/x-raw.*?width=\(int\)(\d+), height=\(int\)(\d+)")


def gst_frames(pipeline: str, wanted: Wanted, stop: Event, silence: float) -> Iterator[Frame]:
    """Raw RGB of a pipeline until it ends or `stop` is set; the child is gone when this generator is closed.

    Args:
        pipeline: elements up to the one that gives raw video, as gst-launch-1.0 takes them.
        silence: seconds without a byte after which the pipeline counts as dead.

    Raises:
        InputError: it cannot be run, gives no frames, fails, stays silent, or changes the size of its frames.
    """
    child = _Child(pipeline)
    try:
        yield from _frames(child, wanted, stop, silence)
    finally:
        child.close()


def _frames(child: _Child, wanted: Wanted, stop: Event, silence: float) -> Iterator[Frame]:
    size: tuple[int, int] | None = None
    body, filled, heard = bytearray(), 0, time.monotonic()
    while not stop.is_set():
        if not child.wait():
            if time.monotonic() - heard > silence:
                raise InputError(f"the GStreamer pipeline gave nothing for {silence:g} s", field="source")
            continue
        if size is None:
            size = _first_size(child, stop, silence)
            if size is None:
                return
            body = bytearray(_stride(size[1]) * size[0])
        got = os.readv(child.frames, [memoryview(body)[filled:]])
        if not got:
            child.check_end()
            return
        filled, heard = filled + got, time.monotonic()
        if filled < len(body):
            continue
        filled = 0
        child.check_size()
        if wanted(heard):
            rows = np.frombuffer(body, np.uint8).reshape(size[0], -1)
            yield Frame(heard, rows[:, : size[1] * 3].reshape(*size, 3).copy())
        heard = time.monotonic()


def _first_size(child: _Child, stop: Event, silence: float) -> tuple[int, int] | None:
    """Of the frames that come next; gst-launch-1.0 may tell it after the first bytes. None if `stop` is set."""
    deadline = time.monotonic() + silence
    while not stop.wait(0.01):
        ended = child.ended
        child.hear()
        if child.size is not None:
            return child.size
        if ended or time.monotonic() > deadline:
            raise InputError("the GStreamer pipeline gives no frames", field="source", got=child.complaint())
    return None


def _stride(width: int) -> int:
    """Bytes of a row of RGB: GStreamer pads it to four."""
    return (width * 3 + 3) // 4 * 4


class _Child:
    """The running pipeline.

    Attributes:
        frames: the file descriptor that they come from; not blocking once `wait` was True.
        size: height and width by the first caps told, None before.

    Raises:
        InputError: gst-launch-1.0 cannot be run.
    """

    def __init__(self, pipeline: str) -> None:
        self.frames, theirs = os.pipe()
        self.size: tuple[int, int] | None = None
        self._resized = False
        self._line = self._said = ""
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
        """Whether there is a byte of a frame, or the end of them, within POLL_SECONDS; what was said is read."""
        ready = {key.fd for key, _ in self._selector.select(POLL_SECONDS)}
        if ready:
            self.hear()
        return self.frames in ready

    def hear(self) -> None:
        """Read what the child has said."""
        lines = (self._line + self._read(self._out.fileno())).split("\n")
        self._line = lines.pop()[-_KEPT_BYTES:]
        for line in lines:
            if told := _CAPS.search(line):
                found = int(told[2]), int(told[1])
                self.size = self.size or found
                self._resized = self._resized or self.size != found
        self._said = (self._said + self._read(self._err.fileno()))[-_KEPT_BYTES:]

    def complaint(self) -> str:
        """The first error that it named, or the end of what it said; without passwords in URLs."""
        lines = self._said.splitlines() or [""]
        first = next((i for i, line in enumerate(lines) if "ERROR" in line or "erroneous" in line), len(lines) - 1)
        return re.sub(r"//[^/\s@]*@", "//", " ".join(lines[first : first + 4]))[:400]

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def check_size(self) -> None:
        """Frames have no marks between them, so a pipeline that has other caps now must begin anew.

        gst-launch-1.0 tells them from another thread: a frame that is read in that moment may be garbled.

        Raises:
            InputError: it has.
        """
        self.hear()
        if self._resized:
            raise InputError("the GStreamer pipeline changed the size of its frames", field="source")

    def check_end(self) -> None:
        """Raises: InputError: the child did not end by itself and well."""
        try:
            status: int | None = self._process.wait(1)
        except subprocess.TimeoutExpired:
            status = None
        self.check_size()
        if status:
            raise InputError("the GStreamer pipeline failed", field="source", got=self.complaint())

    def close(self) -> None:
        """Kill it, however silent it is."""
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
            told = os.read(pipe, _PIPE_BYTES)
        except BlockingIOError:
            return ""
        if not told:  # closed: it would count as ready for ever
            self._selector.unregister(pipe)
        return told.decode(errors="replace")
