"""Device and pinned memory, a stream, a captured graph: the CUDA runtime through cuda-bindings.

cuda-bindings and not torch's allocator: a device that runs TensorRT engines then needs no torch (6 GB), and an
engine takes plain addresses and a stream handle, which both libraries provide.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import EngineError


def checked(call: str, answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA runtime call, which answers (status, value).

    Raises:
        EngineError: the call failed; names it and CUDA's reason.
    """
    status = answer[0]
    if status != cudart.cudaError_t.cudaSuccess:
        reason = cudart.cudaGetErrorString(status)[1]
        text = reason.decode() if isinstance(reason, bytes) else str(status)
        raise EngineError(f"{call} failed ({text})", field="gpu")
    return answer[1] if len(answer) > 1 else None


def free_memory() -> int:
    """Bytes of the current GPU that nobody uses.

    Raises:
        EngineError: no GPU.
    """
    return int(checked("cudaMemGetInfo", cudart.cudaMemGetInfo()))


class DeviceBuffer:
    """Memory on the GPU, allocated once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(checked(f"cudaMalloc of {size} bytes", cudart.cudaMalloc(size)))

    def free(self) -> None:
        if self.address:
            cudart.cudaFree(self.address)
            self.address = 0


class PinnedBuffer:
    """Host memory that the GPU copies to and from without a detour.

    Attributes:
        bytes: uint8 [size] view of it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(checked(f"cudaMallocHost of {size} bytes", cudart.cudaMallocHost(size)))
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))

    def view(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The start of the buffer as an array of that dtype and shape."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes[:count].view(dtype).reshape(shape)

    def free(self) -> None:
        if self.address:
            cudart.cudaFreeHost(self.address)
            self.address = 0


class Stream:
    """A stream of its own, so that the engine neither waits for nor blocks other work on the GPU."""

    def __init__(self) -> None:
        flags = cudart.cudaStreamNonBlocking
        self.handle = int(checked("cudaStreamCreateWithFlags", cudart.cudaStreamCreateWithFlags(flags)))

    def to_device(self, target: DeviceBuffer, source: int, size: int) -> None:
        """Copy `size` bytes from a host address; returns before they arrive."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked("cudaMemcpyAsync", cudart.cudaMemcpyAsync(target.address, source, size, kind, self.handle))

    def to_host(self, target: PinnedBuffer, source: DeviceBuffer, size: int) -> None:
        """Copy `size` bytes to pinned memory; returns before they arrive."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked("cudaMemcpyAsync", cudart.cudaMemcpyAsync(target.address, source.address, size, kind, self.handle))

    def wait(self) -> None:
        """Block until all that was enqueued is done."""
        checked("cudaStreamSynchronize", cudart.cudaStreamSynchronize(self.handle))

    def capture(self, enqueue: Callable[[], None]) -> CapturedGraph:
        """Record what `enqueue` puts on this stream, without running it.

        Raises:
            EngineError: something in it cannot be captured; the stream can be used as before.
        """
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked("cudaStreamBeginCapture", cudart.cudaStreamBeginCapture(self.handle, mode))
        try:
            enqueue()
        except EngineError:
            cudart.cudaStreamEndCapture(self.handle)  # a capture that failed must still be ended
            raise
        graph = checked("cudaStreamEndCapture", cudart.cudaStreamEndCapture(self.handle))
        try:
            return CapturedGraph(checked("cudaGraphInstantiate", cudart.cudaGraphInstantiate(graph, 0)), self)
        finally:
            cudart.cudaGraphDestroy(graph)

    def destroy(self) -> None:
        if self.handle:
            cudart.cudaStreamDestroy(self.handle)
            self.handle = 0


class CapturedGraph:
    """What was captured, launched as one."""

    def __init__(self, executable: Any, stream: Stream) -> None:
        self._executable, self._stream = executable, stream

    def launch(self) -> None:
        checked("cudaGraphLaunch", cudart.cudaGraphLaunch(self._executable, self._stream.handle))

    def destroy(self) -> None:
        cudart.cudaGraphExecDestroy(self._executable)


class EventTimer:
    """Milliseconds between two points of a stream, by the GPU's own clock."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events = [checked("cudaEventCreate", cudart.cudaEventCreate()) for _ in range(2)]

    def start(self) -> None:
        checked("cudaEventRecord", cudart.cudaEventRecord(self._events[0], self._stream.handle))

    def stop(self) -> float:
        """Wait for the work between, and return its milliseconds; a timer is used once."""
        checked("cudaEventRecord", cudart.cudaEventRecord(self._events[1], self._stream.handle))
        self._stream.wait()
        elapsed = float(checked("cudaEventElapsedTime", cudart.cudaEventElapsedTime(*self._events)))
        for event in self._events:
            cudart.cudaEventDestroy(event)
        return elapsed
