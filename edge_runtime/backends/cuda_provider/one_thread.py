"""The one thread in which a backend's CUDA sessions are loaded and run.

ONNX Runtime keeps a CUDA graph for each thread that runs a session (`CUDAExecutionProvider::PerThreadContext`): another
thread would capture it again, with memory of its own, and while it captures, an allocation in a third thread is an
error. So all of a backend's sessions have one thread, in which pictures of any size follow one another.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")


class SessionThread:
    """The thread; it starts with its first work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime-cuda")

    def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """What the work returns or raises, done in the thread."""
        return self._pool.submit(work, *arguments).result()

    def close(self) -> None:
        """End the thread when its work is done."""
        self._pool.shutdown()


class InItsThread:
    """A loaded session that is run in that thread alone, whoever asks."""

    def __init__(self, thread: SessionThread, load: Callable[[], Any]) -> None:
        self._thread = thread
        self._inner = thread.call(load)

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs in the record's order, owned by the caller."""
        outputs: list[NDArray[Any]] = self._thread.call(self._inner.run, feeds)
        return outputs

    def device_seconds(self, feeds: dict[str, NDArray[Any]]) -> float | None:
        """Seconds until the device is done, by the host's clock; None where nothing is bound to it."""
        seconds: float | None = self._thread.call(self._inner.device_seconds, feeds)
        return seconds

    def close(self) -> None:
        """Free it in the thread that made it."""
        self._thread.call(self._inner.close)
