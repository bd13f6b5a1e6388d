"""A stand-in for a GPU, for what the TensorRT backend itself does: addresses, shapes, order of work, threads.

Device memory is host memory; a stream does its work when it is waited for and not before, as a GPU may; an engine
runs the ONNX graph that its plan was built from, in ONNX Runtime. So a missing copy, a wrong size, an output read
too early or a table left behind gives wrong embeddings here as it would there. It says nothing of TensorRT.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.trt_plans import PlanRecord
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads

OK = 0


class EmulatedCuda:
    """The calls of `cuda.bindings.runtime` that the backend makes."""

    cudaStreamNonBlocking = 1
    cudaError_t = SimpleNamespace(cudaSuccess=OK)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.events: dict[int, float] = {}
        self.launches = 0
        self.handles = itertools.count(1)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return OK, b"emulated failure"

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        block = ctypes.create_string_buffer(b"\xa5" * size, size)  # what was there before is not zero
        self.memory[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        used = sum(ctypes.sizeof(block) for block in self.memory.values())
        return OK, 2**33 - used, 2**33

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]  # a KeyError is a double free
        return (OK,)

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        handle = next(self.handles)
        self.queues[handle] = []
        return OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        del self.queues[stream]
        return (OK,)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        (self.queues[stream] if self.capturing is None else self.capturing).append(work)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))  # type: ignore[arg-type]
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        queue, self.queues[stream] = self.queues[stream], []
        for work in queue:
            work()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert not self.queues[stream], "work was still pending when the capture began"
        self.capturing = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, list[Callable[[], None]]]:
        graph, self.capturing = self.capturing, None
        assert graph
        return OK, graph

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[int, int]:
        handle = next(self.handles)
        self.captured[handle] = graph
        return OK, handle

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.launches += 1
        self.queues[stream].extend(self.captured[graph])
        return (OK,)

    def cudaEventCreate(self) -> tuple[int, int]:
        handle = next(self.handles)
        self.events[handle] = 0.0
        return OK, handle

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        self.enqueue(stream, lambda: self.events.update({event: time.perf_counter()}))
        return (OK,)

    def cudaEventElapsedTime(self, first: int, second: int) -> tuple[int, float]:
        return OK, 1e3 * (self.events[second] - self.events[first])

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        del self.events[event]
        return (OK,)

    def cudaGraphDestroy(self, graph: object) -> tuple[int]:
        return (OK,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:
        del self.captured[graph]
        return (OK,)


class EmulatedLibrary:
    """The calls of `tensorrt` and `tensorrt_rtx` that the backend makes."""

    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2, VERBOSE=4)

    def __init__(self, bundle: Bundle, cuda: EmulatedCuda, version: str) -> None:
        self.bundle, self.cuda, self.__version__ = bundle, cuda, version
        self.plans = {
            (bundle.path / plan.path).read_bytes(): plan for engine in bundle.manifest.engines for plan in engine.plans
        }

    def nptype(self, dtype: str) -> str:
        return dtype

    def Runtime(self, logger: object) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: EmulatedEngine(self, self.plans[bytes(plan)]))


class EmulatedEngine:
    """An engine that runs its graph in ONNX Runtime."""

    device_memory_size_v2 = 4096

    def __init__(self, library: EmulatedLibrary, plan: PlanRecord) -> None:
        self.library, self.plan = library, plan
        self.specs = {spec.name: spec for spec in (*plan.inputs, *plan.outputs)}
        self.num_io_tensors = len(self.specs)
        self.num_optimization_profiles = len(plan.buckets)
        path = library.bundle.path / plan.graph
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = cpu_threads()
        self.session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_dtype(self, name: str) -> str:
        return self.specs[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in self.specs[name].shape)

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(deserialize=lambda blob: True, serialize=lambda: b"kernels")
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda cache: True,
        )

    def create_execution_context(self, strategy: object) -> EmulatedContext:
        return EmulatedContext(self)


class EmulatedContext:
    """A context that refuses what TensorRT would: no memory, no address, a shape outside its profile."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine, self.profile, self.memory = engine, 0, 0
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.has_run = False

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.memory = address

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return index < self.engine.num_optimization_profiles

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.specs

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        plan, spec = self.engine.plan, self.engine.specs[name]
        grid = Grid.parse(plan.buckets[self.profile])
        self.shapes[name] = shape
        return shape == spec.shape_for(grid.patches, grid.patches_per_frame)

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory in self.engine.library.cuda.memory
        assert set(self.addresses) == set(self.engine.specs)
        assert self.has_run or self.engine.library.cuda.capturing is None, "captured before its first run"
        self.has_run = True
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        assert set(shapes) == {spec.name for spec in self.engine.plan.inputs}

        def work() -> None:
            feeds = {name: _at(addresses[name], self.engine.specs[name].dtype, shape) for name, shape in shapes.items()}
            names = [spec.name for spec in self.engine.plan.outputs]
            for name, result in zip(names, self.engine.session.run(names, feeds), strict=True):
                ctypes.memmove(addresses[name], np.ascontiguousarray(result).ctypes.data, result.nbytes)

        self.engine.library.cuda.enqueue(stream, work)
        return True


def _at(address: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape).copy()
