"""The encoder on PyTorch, from the checkpoint: parity's reference on the CPU, and a fast encoder on a GPU.

In fp32 on the CPU it is transformers' own module, the oracle of every other backend. On a GPU, and in fp16 and bf16,
it is the same encoder written straight (backends/straight), compiled and captured for each bucket on a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle, open_model_of
from qwen3vl_edge.contract.bundle.torch_encoder import (
    TORCH_DTYPES,
    load_torch_encoder,
    read_visual_tensors,
    run_torch_encoder,
)
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.backends.selection import float32_layers
from qwen3vl_edge.edge_runtime.backends.straight.capture import CpuDevice, CudaDevice, TowerRunner
from qwen3vl_edge.edge_runtime.backends.straight.compiled_code import (
    compiled_steps,
    keep_compiled_code,
    starting_compiler,
)
from qwen3vl_edge.edge_runtime.backends.straight.tower import PLAIN, StraightTower
from qwen3vl_edge.edge_runtime.encoder.protocol import (
    AUTO_DTYPE,
    BackendOptions,
    Embeddings,
    EncoderBackend,
    ServedGrids,
    bundle_serves,
)

KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PytorchBackend:
    """`Qwen3VLVisionModel` alone, in fp32 on the CPU, its weights read without the language model's.

    Attributes:
        module: the `torch.nn.Module`.
    """

    name = "pytorch"
    precision = "fp32"

    def __init__(self, checkpoint: Checkpoint, serves: ServedGrids = ServedGrids((), dynamic=True)) -> None:
        self.serves = serves
        self.module = load_torch_encoder(checkpoint)

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        embeds, *deepstack = run_torch_encoder(self.module, grid, pixel_values)
        return Embeddings(embeds, tuple(deepstack))

    def close(self) -> None:
        del self.module


class StraightBackend:
    """The encoder written straight, on a GPU or the CPU; safe to call from several threads, which take turns.

    Attributes:
        name: "pytorch", and the GPU that it runs on, such as "pytorch-cuda" or "pytorch-cuda:1".
        precision: of weights and matrix products.
        device_bytes: of the GPU's memory, for weights and buckets.
        edits: "not-compiled" where the compiler failed: embeddings differ, so proofs and caches are apart.

    Args:
        compiled: torch.compile makes kernels for each bucket; otherwise torch's own run, one after another.

    Raises:
        EngineError: the GPU has not enough memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: str,
        serves: ServedGrids,
        *,
        compiled: bool,
    ) -> None:
        on_gpu = device.type == "cuda"
        self.name = f"pytorch-{device}" if on_gpu else "pytorch"
        self.precision, self.serves = precision, serves
        self._device = device
        before = torch.cuda.memory_reserved(device) if on_gpu else 0
        with starting_compiler(device) if compiled and on_gpu else nullcontext():
            tower = StraightTower(bundle.manifest.vision, read_visual_tensors(checkpoint), KINDS[precision], device)
        self._runner = TowerRunner(
            tower,
            CudaDevice(device) if on_gpu else CpuDevice(),
            serves.buckets,
            compiled_steps if compiled else lambda: PLAIN,
        )
        self.edits = ("not-compiled",) if self._runner.gave_up_compiling else ()
        self.device_bytes = max(torch.cuda.memory_reserved(device) - before, 0) if on_gpu else 0

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        embeds, *deepstack = self._runner.run(grid, pixel_values)
        return Embeddings(embeds, tuple(deepstack))

    def device_seconds(self, grid: Grid, pixel_values: NDArray[np.float32]) -> float:
        """Seconds of one run by the device's own clock, without the copies to and from it."""
        return self._runner.device_seconds(grid, pixel_values)

    def close(self) -> None:
        del self._runner
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # for others on this GPU: the backend that replaces it at a reload, say


def load(bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load the PyTorch encoder of the bundle's model.

    Raises:
        InputError: no checkpoint given, no such device, or no such dtype.
        CheckpointError: it is missing.
        ModelMismatchError: the checkpoint is not the one that the bundle was exported from.
        EngineError: the GPU has not enough memory.
    """
    if options.model is None:
        raise InputError("backend pytorch needs the checkpoint", field="--model", remedy="Give --model FOLDER.")
    device = find_device(options.device)
    if device.type == "cuda":
        keep_compiled_code(torch.cuda.get_device_name(device))
    checkpoint = open_model_of(bundle, str(options.model))
    precision = choose_dtype(options, device, checkpoint)
    _check_range(bundle, precision)
    # Pictures go to the buckets of the set of that precision; where the bundle has none, to those of its first.
    sets = [item.precision for item in bundle.manifest.precisions]
    serves = bundle_serves(bundle, precision if precision in sets else None)
    if (device.type, precision) == ("cpu", "fp32"):
        return PytorchBackend(checkpoint, serves)
    return StraightBackend(bundle, checkpoint, device, precision, serves, compiled=device.type == "cuda")


def _check_range(bundle: Bundle, precision: str) -> None:
    """Refuse float16 where the bundle's own fp16 set keeps layers in float32 (`export/onnx/headroom.py`).

    Raises:
        InputError: it does; names them.
    """
    if wide := float32_layers(bundle, precision):
        raise InputError(
            "backend pytorch has all layers in float16, and the bundle's fp16 set needs float32 for some",
            field="--dtype",
            expected="bf16 or fp32",
            got=f"fp16, with {', '.join(wide[:4])} in float32",
        )


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: this machine, or this PyTorch, has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
    if name not in known:
        remedy = None
        if name.startswith("cuda") and not count:
            remedy = (
                f"PyTorch {torch.__version__} finds no GPU: it needs an NVIDIA driver and a build of PyTorch for CUDA."
            )
        raise InputError(
            "no such device", field="--device", expected=" or ".join(known), got=repr(name[:40]), remedy=remedy
        )
    return torch.device(name)


def choose_dtype(options: BackendOptions, device: torch.device, checkpoint: Checkpoint) -> str:
    """What the encoder computes in, a key of KINDS.

    The dtype that was asked for, else the precision; else fp32 on the CPU and the checkpoint's own on a GPU.

    Raises:
        InputError: PyTorch does not compute in it here.
    """
    dtype = options.dtype if options.dtype != AUTO_DTYPE else options.precision
    field = "--precision" if options.dtype == AUTO_DTYPE else "--dtype"
    if dtype is None:
        return "fp32" if device.type == "cpu" else stored_dtype(checkpoint)
    if dtype not in KINDS:
        raise InputError(
            "backend pytorch does not compute in this",
            field=field,
            expected=" or ".join(KINDS) + ("" if field == "--precision" else f" or {AUTO_DTYPE}"),
            got=repr(dtype[:40]),
        )
    return dtype


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The checkpoint's own dtype, as transformers' `dtype="auto"` finds it: config.json's, else that of its tensors."""
    written = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")
    first = next(iter(checkpoint.visual_tensors.values())).entry.dtype
    named = str(written).removeprefix("torch.") if written else TORCH_DTYPES.get(first, "float32")
    return next((name for name, kind in KINDS.items() if str(kind) == f"torch.{named}"), "fp32")
