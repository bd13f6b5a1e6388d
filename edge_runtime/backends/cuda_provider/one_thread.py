"""The one thread of this process in which ONNX Runtime's sessions on a GPU are loaded and run.

ONNX Runtime keeps a CUDA graph for each thread that runs a session (`CUDAExecutionProvider::PerThreadContext`): another
thread would capture it again, with memory of its own, and while it captures (`cudaStreamCaptureModeGlobal`), an
allocation in any other thread is an error. So all sessions have one thread, in which pictures of any size follow one
another: those of all backends, because a reload loads and captures a new one while the old one serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")
NAME = "onnxruntime-gpu"

_lock = threading.Lock()
_pools: list[ThreadPoolExecutor] = []  # the thread, once there was work; it stays, idle, until the process ends


def call_in_gpu_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What the work returns or raises, done in the thread; at once where the caller is in it."""
    if threading.current_thread().name.startswith(NAME):
        return work(*arguments)
    with _lock:
        if not _pools:
            _pools.append(ThreadPoolExecutor(1, thread_name_prefix=NAME))
    return _pools[0].submit(work, *arguments).result()


class InGpuThread:
    """A loaded session that is run in that thread alone, whoever asks.

    Args:
        load: makes the session, in the thread.
        free_bytes: of the GPU's memory, None where that is not known.

    Attributes:
        device_bytes: by which free memory became less as it was loaded; 0 where that is not known.
    """

    def __init__(self, load: Callable[[], Any], free_bytes: Callable[[], int | None] = lambda: None) -> None:
        self.device_bytes = 0
        self._inner = call_in_gpu_thread(self._measured, load, free_bytes)

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs in the record's order, owned by the caller."""
        outputs: list[NDArray[Any]] = call_in_gpu_thread(self._inner.run, feeds)
        return outputs

    def device_seconds(self, feeds: dict[str, NDArray[Any]]) -> float | None:
        """Seconds until the device is done, by the host's clock; None where nothing is bound to it."""
        seconds: float | None = call_in_gpu_thread(self._inner.device_seconds, feeds)
        return seconds

    def close(self) -> None:
        """Free it in the thread that made it."""
        call_in_gpu_thread(self._close)
        self.device_bytes = 0

    def _measured(self, load: Callable[[], Any], free_bytes: Callable[[], int | None]) -> Any:
        before = free_bytes()
        loaded = load()
        after = free_bytes()
        if before is not None and after is not None:
            self.device_bytes = max(before - after, 0)
        return loaded

    def _close(self) -> None:
        self._inner.close()
        self._inner = None  # the session itself is freed here too
