"""A tower made ready for its buckets: on a GPU each is captured once as a CUDA graph and then launched as a whole.

A captured graph reads and writes the same memory each time it runs. So pictures take turns, and each run's outputs are
copied to memory of their own before the next starts. On a CPU the same code runs with the capture left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.edge_runtime.backends.straight.tower import PLAIN, Steps, StraightTower

logger = logging.getLogger("edge")
# Runs before a capture: the first compiles, and libraries choose kernels and allocate in the first ones.
WARM_UP_RUNS = 2
Outputs = tuple[Tensor, ...]
Work = Callable[[], Outputs]


class Device(Protocol):
    """Where a tower runs."""

    def active(self) -> Any:
        """Context in which its work is queued."""
        ...

    def host_memory(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that it copies to and from without a detour."""
        ...

    def capture(self, work: Work) -> Work:
        """The same work, repeatable at the least cost; it may give the same tensors each time."""
        ...

    def wait(self) -> None:
        """Block until all that was queued is done."""
        ...

    def seconds(self, work: Work) -> float:
        """Seconds of the work, by the device's own clock."""
        ...


class CpuDevice:
    """The CPU: everything is done when its call returns, and a capture is the work itself."""

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def host_memory(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def capture(self, work: Work) -> Work:
        return work

    def wait(self) -> None:
        pass

    def seconds(self, work: Work) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


class CudaDevice:
    """A GPU, on a stream of its own, so that the encoder neither waits for nor blocks other work there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # One pool for the intermediate results of all grids: one is encoded at a time, and its outputs are copied away.
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def host_memory(self, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def capture(self, work: Work) -> Work:
        for _ in range(WARM_UP_RUNS):
            work()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads do on the GPU meanwhile is not captured, and does not end the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work()

        def replay(keep: Work = work) -> Outputs:  # the work owns the memory that the graph reads
            graph.replay()
            return outputs

        return replay

    def wait(self) -> None:
        self._stream.synchronize()

    def seconds(self, work: Work) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        self.wait()
        return float(start.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Prepared:
    """A bucket ready to run: where its pixels are copied to, on the host and on the device, and its work."""

    staged: Tensor
    pixels: Tensor
    run: Work


class TowerRunner:
    """Encodes pictures on a tower, one after another; safe to call from several threads.

    Args:
        buckets: grids made ready now; all others run step by step.
        steps: called for each bucket: compiled copies of the tower's steps, or the plain ones.

    Attributes:
        gave_up_compiling: the compiler failed, and buckets run the plain steps; their sums are in another order.

    Raises:
        EngineError: the device has not enough memory.
    """

    def __init__(
        self, tower: StraightTower, device: Device, buckets: Iterable[Grid], steps: Callable[[], Steps] = lambda: PLAIN
    ) -> None:
        self.tower, self._device, self._steps = tower, device, steps
        self._lock = threading.Lock()
        self.gave_up_compiling = False
        with self._queued():
            self._prepared = {grid: self._prepare(grid) for grid in buckets}

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> list[NDArray[Any]]:
        """The outputs in the graphs' order, [tokens, D] each, owned by the caller.

        Raises:
            EngineError: the device has not enough memory for a grid that has no bucket.
        """
        with self._queued():
            prepared = self._prepared.get(grid) or self._unprepared(grid)
            prepared.staged.copy_(torch.from_numpy(pixel_values))
            prepared.pixels.copy_(prepared.staged, non_blocking=True)
            found = [self._to_host(output) for output in prepared.run()]
            self._device.wait()
        return [output.numpy() for output in found]

    def device_seconds(self, grid: Grid, pixel_values: NDArray[np.float32]) -> float:
        """Seconds of one run by the device's own clock, without the copies to and from it."""
        with self._queued():
            prepared = self._prepared.get(grid) or self._unprepared(grid)
            prepared.pixels.copy_(torch.from_numpy(pixel_values))
            return self._device.seconds(prepared.run)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        with self._lock, self._device.active(), torch.inference_mode():
            try:
                yield
            except torch.cuda.OutOfMemoryError as error:
                raise EngineError(
                    f"the GPU has not enough memory for the encoder ({str(error).splitlines()[0]})",
                    field="--device",
                    remedy="Free some, name another GPU (--device cuda:1), or export fewer or smaller buckets.",
                ) from None

    def _to_host(self, output: Tensor) -> Tensor:
        return self._device.host_memory(output.shape, output.dtype).copy_(output, non_blocking=True)

    def _prepare(self, grid: Grid) -> Prepared:
        plain = self._unprepared(grid)
        # Not this object: in a circle with it, weights and graphs would stay on the GPU until garbage is collected.
        tower, tables, steps = self.tower, self.tower.tables(grid), self._steps()

        def work() -> Outputs:
            return tower.run(grid, plain.pixels, tables, steps)

        if steps is not PLAIN:
            try:
                work()
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # torch's compilers raise many kinds; a machine may lack a C compiler, or Triton
                reason = " ".join(str(error).split())[:200]
                logger.warning("the encoder is not compiled, and slower: %s: %s", type(error).__name__, reason)
                self._steps = lambda: PLAIN
                self.gave_up_compiling = True
                return self._prepare(grid)
        return Prepared(plain.staged, plain.pixels, self._device.capture(work))

    def _unprepared(self, grid: Grid) -> Prepared:
        """A grid that runs step by step, with buffers of its own."""
        shape = (grid.patches, self.tower.spec.patch_values)
        pixels = torch.zeros(shape, device=self.tower.device)
        tower, tables = self.tower, self.tower.tables(grid)
        staged = self._device.host_memory(shape, torch.float32)
        return Prepared(staged, pixels, lambda: tower.run(grid, pixels, tables))
