"""The encoder on TensorRT or TensorRT-RTX: one class over both modules.

Everything is allocated and captured when the engine is loaded. One execution context per profile, so that no
profile is ever switched between two pictures; all contexts share one block of scratch memory, because runs
are sequential. A run copies the patches to pinned memory, launches one captured graph (copy, encode, copy), waits
for the stream and copies the embeddings out.

Written against the bindings of TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7; not yet run on a GPU.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.position_tables import position_inputs
from qwen3vl_edge.contract.bundle.trt_plans import EngineRecord, PlanRecord
from qwen3vl_edge.contract.errors import BucketError, EngineError
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import trt, using
from qwen3vl_edge.edge_runtime.backends.cuda import CapturedGraph, DeviceBuffer, EventTimer, PinnedBuffer, Stream
from qwen3vl_edge.edge_runtime.backends.plan_loader import LoadedPlan, load_plan
from qwen3vl_edge.edge_runtime.backends.selection import choose_engine, rebuild_command
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings, EncoderBackend, ServedGrids

PIXELS = "pixel_values"
SCRATCH_ALIGNMENT = 256


@dataclass
class _Profile:
    """One profile ready to run: its context, and the addresses of its inputs and outputs."""

    context: trt.IExecutionContext
    tables: dict[str, DeviceBuffer]
    graph: CapturedGraph | None = None


class TensorRTBackend:
    """The engine of one target, with a profile per bucket.

    Attributes:
        device_bytes: of device memory in use: its buffers, and the plans' own size for their weights.
    """

    def __init__(self, library_name: str, bundle: Bundle, record: EngineRecord) -> None:
        self.name, self.precision = library_name, record.precision
        self._bundle, self._record = bundle, record
        self._vision = bundle.manifest.vision
        self._lock = threading.Lock()
        self._profiles: dict[str, _Profile] = {}
        self._owned: list[Any] = []  # freed in close(), last first
        self.device_bytes = sum((bundle.path / plan.path).stat().st_size for plan in record.plans)
        try:
            with using(library_name):
                self._load()
        except BaseException:
            self.close()
            raise

    @property
    def serves(self) -> ServedGrids:
        buckets = tuple(Grid.parse(bucket) for plan in self._record.plans for bucket in plan.buckets)
        return ServedGrids(buckets, dynamic=False)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        with self._lock:
            self._start(grid, pixel_values)
            self._stream.wait()
            rows = (grid.tokens(self._vision.merge_size), self._vision.out_hidden_size)
            outputs = [self._outputs_host[name].view(self._dtype, rows).copy() for name in self._vision.output_names]
        return Embeddings(outputs[0], tuple(outputs[1:]))

    def device_seconds(self, grid: Grid, pixel_values: NDArray[np.float32]) -> float:
        """Seconds that the GPU spends on a run, copies included, by its own clock."""
        with self._lock:
            timer = EventTimer(self._stream)
            timer.start()
            self._start(grid, pixel_values)
            return timer.stop() / 1e3

    def close(self) -> None:
        with self._lock:
            for profile in self._profiles.values():
                if profile.graph is not None:
                    profile.graph.destroy()
            self._profiles = {}
            self._plans: list[LoadedPlan] = []  # contexts first, then engines, then their memory
            while self._owned:
                release = self._owned.pop()
                release()

    def _start(self, grid: Grid, pixel_values: NDArray[np.float32]) -> None:
        """Put a run on the stream."""
        profile = self._profiles.get(str(grid))
        if profile is None:
            raise BucketError(
                f"the engine has no profile for grid {grid}",
                field="buckets",
                expected=", ".join(self._profiles),
                remedy=f"Build it with that bucket: {rebuild_command(self._bundle, self._record)} --buckets …",
            )
        self._pixels_host.view("float32", pixel_values.shape)[...] = pixel_values
        if profile.graph is not None:
            profile.graph.launch()
        else:
            self._enqueue(profile, grid)

    def _load(self) -> None:
        self._stream = Stream()
        self._owned.append(self._stream.destroy)
        plans = self._record.plans
        self._plans = [load_plan(self._bundle, self._record, plan) for plan in plans]
        scratch_size = max(int(plan.engine.device_memory_size_v2) for plan in self._plans)
        self._scratch = self._device(max(scratch_size, SCRATCH_ALIGNMENT))
        self._allocate(max(self._patches(plan) for plan in plans))
        for plan in self._plans:
            make_context, save_kernels = self._context_maker(plan)
            for index, bucket in enumerate(plan.record.buckets):
                self._profiles[bucket] = self._bucket_profile(make_context(), index, plan.record, Grid.parse(bucket))
            save_kernels()

    @staticmethod
    def _patches(plan: PlanRecord) -> int:
        return max(Grid.parse(bucket).patches for bucket in plan.buckets)

    def _allocate(self, patches: int) -> None:
        """Buffers for the largest picture, which all profiles share."""
        spec = self._record.plans[0].outputs[0]
        self._dtype = spec.dtype
        pixels = patches * self._vision.patch_values * 4
        out = patches // self._vision.merge_size**2 * self._vision.out_hidden_size * np.dtype(spec.dtype).itemsize
        self._pixels, self._pixels_host = self._device(pixels), self._pinned(pixels)
        self._outputs = {name: self._device(out) for name in self._vision.output_names}
        self._outputs_host = {name: self._pinned(out) for name in self._vision.output_names}

    def _device(self, size: int) -> DeviceBuffer:
        buffer = DeviceBuffer(size)
        self.device_bytes += size
        self._owned.append(buffer.free)
        return buffer

    def _pinned(self, size: int) -> PinnedBuffer:
        buffer = PinnedBuffer(size)
        self._owned.append(buffer.free)
        return buffer

    def _context_maker(self, plan: LoadedPlan) -> tuple[Any, Any]:
        """Two functions: one makes a context of this plan, the other is called when all are warm."""
        if self.name == "tensorrt_rtx":
            from qwen3vl_edge.edge_runtime.backends.rtx_context import runtime_config, save_runtime_cache

            file = self._cache_file(plan.record)
            config, cache = runtime_config(plan.engine, file)
            return lambda: plan.engine.create_execution_context(config), lambda: save_runtime_cache(cache, file)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return lambda: plan.engine.create_execution_context(strategy), lambda: None

    def _cache_file(self, plan: PlanRecord) -> Path:
        return (self._bundle.path / plan.path).with_suffix(".kernels")

    def _bucket_profile(self, context: trt.IExecutionContext, index: int, plan: PlanRecord, grid: Grid) -> _Profile:
        """A profile whose shapes never change: tables on the device once, warmed up, captured."""
        profile = self._profile(context, index, plan, grid.patches_per_frame)
        self._set_shapes(profile, plan, grid)
        self._upload_tables(profile, grid)
        self._pixels_host.bytes[:] = 0
        self._enqueue(profile, grid)  # the first run allocates and picks kernels, which must not be captured
        self._stream.wait()
        if self.name == "tensorrt":  # tensorrt_rtx captures by itself
            profile.graph = self._capture(profile, grid)
        return profile

    def _profile(self, context: trt.IExecutionContext, index: int, plan: PlanRecord, frame_patches: int) -> _Profile:
        context.set_device_memory(self._scratch.address, self._scratch.size)
        if index and not context.set_optimization_profile_async(index, self._stream.handle):
            raise EngineError(f"plan {plan.path} refuses profile {index}", field=plan.path)
        tables = {
            spec.name: self._device(frame_patches * int(spec.shape[1]) * np.dtype(spec.dtype).itemsize)
            for spec in plan.inputs
            if spec.name != PIXELS
        }
        addresses = {name: buffer.address for name, buffer in (tables | self._outputs).items()}
        for name, address in (addresses | {PIXELS: self._pixels.address}).items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"plan {plan.path} refuses the address of {name}", field=name)
        return _Profile(context, tables)

    def _set_shapes(self, profile: _Profile, plan: PlanRecord, grid: Grid) -> None:
        for spec in plan.inputs:
            shape = spec.shape_for(grid.patches, grid.patches_per_frame)
            if not profile.context.set_input_shape(spec.name, shape):
                raise EngineError(f"plan {plan.path} refuses grid {grid}", field=spec.name, got=shape)

    def _upload_tables(self, profile: _Profile, grid: Grid) -> None:
        if not profile.tables:
            return
        arrays = position_inputs(self._vision, grid)
        for name, buffer in profile.tables.items():
            array = np.ascontiguousarray(arrays[name])
            self._stream.to_device(buffer, array.ctypes.data, array.nbytes)
            self._stream.wait()  # before the array goes

    def _enqueue(self, profile: _Profile, grid: Grid) -> None:
        """Pixels to the device, encode, embeddings to the host; all on the stream, waiting for nothing."""
        pixels = grid.patches * self._vision.patch_values * 4
        self._stream.to_device(self._pixels, self._pixels_host.address, pixels)
        if not profile.context.execute_async_v3(self._stream.handle):
            raise EngineError(f"{self.name} could not run grid {grid}", field="gpu")
        rows = grid.tokens(self._vision.merge_size)
        size = rows * self._vision.out_hidden_size * np.dtype(self._dtype).itemsize
        for name in self._vision.output_names:
            self._stream.to_host(self._outputs_host[name], self._outputs[name], size)

    def _capture(self, profile: _Profile, grid: Grid) -> CapturedGraph | None:
        """A graph of the run, or None where the engine has steps that cannot be captured."""
        try:
            return self._stream.capture(lambda: self._enqueue(profile, grid))
        except EngineError:
            return None


def load(library_name: str, bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load the engine of the bundle that fits this GPU.

    Raises:
        EngineError: the library is not installed, the bundle has no engine for it, or none that fits.
    """
    with using(library_name):
        version = trt.__version__
    record = choose_engine(bundle, library_name, version, find_gpu(), options.precision, options.target)
    return TensorRTBackend(library_name, bundle, record)
