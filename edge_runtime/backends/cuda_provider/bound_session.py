"""An ONNX Runtime session of one size with all its memory bound when it is loaded, run by one thread at a time.

Inputs and outputs have their places in device memory, and pinned memory on the host: nothing is allocated and no
pageable memory is copied from when a picture comes. The addresses never change, so that the CUDA provider can capture
the graph's kernels once and launch them as one (`enable_cuda_graph`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.edge_runtime.backends.cuda import DeviceBuffer, PinnedBuffer, Stream


class BoundSession:
    """A loaded graph of a bucket.

    Args:
        session: ONNX Runtime's.
        graph: its record, whose inputs and outputs have fixed shapes.
        device: as ONNX Runtime names it: "cuda", or "cpu" where device memory is emulated.
    """

    def __init__(self, session: Any, graph: GraphRecord, device: str = "cuda") -> None:
        self._session, self._lock = session, threading.Lock()
        self._release: list[Callable[[], None]] = []  # last first
        self._inputs, self._outputs = graph.inputs, graph.outputs
        try:
            self._stream = Stream()
            self._release.append(self._stream.destroy)
            self._memory = {spec.name: self._memory_of(spec) for spec in (*graph.inputs, *graph.outputs)}
            self._binding = session.io_binding()
            for specs, bind in ((graph.inputs, self._binding.bind_input), (graph.outputs, self._binding.bind_output)):
                for spec in specs:
                    address = self._memory[spec.name][0].address
                    bind(spec.name, device, 0, np.dtype(spec.dtype).type, list(spec.shape), address)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs in the record's order, owned by the caller."""
        with self._lock:
            self._upload(feeds)
            self._session.run_with_iobinding(self._binding)
            for spec in self._outputs:
                on_device, on_host = self._memory[spec.name]
                self._stream.to_host(on_host, on_device, on_device.size)
            self._stream.wait()
            return [self._view(spec).copy() for spec in self._outputs]

    def device_seconds(self, feeds: dict[str, NDArray[Any]]) -> float:
        """Seconds of a run whose inputs are on the device and whose outputs stay there, by the host's clock."""
        with self._lock:
            self._upload(feeds)
            started = time.perf_counter()
            self._session.run_with_iobinding(self._binding)  # ONNX Runtime waits for the device
            return time.perf_counter() - started

    def close(self) -> None:
        """Free the memory."""
        with self._lock:
            while self._release:
                self._release.pop()()

    def _upload(self, feeds: dict[str, NDArray[Any]]) -> None:
        for spec in self._inputs:
            on_device, on_host = self._memory[spec.name]
            self._view(spec)[...] = feeds[spec.name]
            self._stream.to_device(on_device, on_host.address, on_device.size)
        self._stream.wait()  # ONNX Runtime computes on a stream of its own

    def _view(self, spec: TensorSpec) -> NDArray[Any]:
        return self._memory[spec.name][1].view(spec.dtype, _shape(spec))

    def _memory_of(self, spec: TensorSpec) -> tuple[DeviceBuffer, PinnedBuffer]:
        size = int(np.prod(_shape(spec))) * np.dtype(spec.dtype).itemsize
        on_device = DeviceBuffer(size)
        self._release.append(on_device.free)
        on_host = PinnedBuffer(size)
        self._release.append(on_host.free)
        return on_device, on_host


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in spec.shape)
