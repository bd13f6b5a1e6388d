"""`--backend auto`: which backend encodes on this machine, and why. The one place that decides.

Without a GPU it is ONNX Runtime on the CPU. With one, in this order, the first that runs this bundle here in the
precision that was asked for:

1. a TensorRT or TensorRT-RTX engine of the bundle that was built for this GPU;
2. PyTorch on CUDA, where it is installed and the checkpoint is given: on an H200 faster than ONNX Runtime at every
   size (docs/reports/benchmarks/gpu-h200.json);
3. ONNX Runtime's CUDA provider;
4. ONNX Runtime on the CPU.

Options of one backend keep the choice to it: a provider to ONNX Runtime, a target to engines, a device or dtype to
PyTorch.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.bundle.trt_plans import LIBRARIES
from qwen3vl_edge.contract.errors import ContractError, EngineError, InputError
from qwen3vl_edge.contract.machine.gpu import Gpu, find_gpu, gpu_is_present
from qwen3vl_edge.contract.machine.tensorrt_library import import_library
from qwen3vl_edge.edge_runtime.backends.selection import choose_engine, float32_layers
from qwen3vl_edge.edge_runtime.encoder.protocol import AUTO_DTYPE, AUTO_PROVIDER, BackendOptions

logger = logging.getLogger("edge")

AUTO = "auto"
TORCH_PRECISIONS = ("fp32", "fp16", "bf16")  # as KINDS of backends/pytorch.py, which imports torch


@dataclass(frozen=True)
class BackendChoice:
    """The backend that encodes.

    Attributes:
        name: a key of `BACKENDS`.
        options: as it is loaded.
        reason: in words, for the log and the evidence; empty where it was named, or there is no GPU to choose for.
    """

    name: str
    options: BackendOptions
    reason: str = ""


def _library_version(name: str) -> str:
    return str(import_library(name).__version__)


def _start_torch(device: str) -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise InputError("torch and transformers are not installed", field="--backend")
    from qwen3vl_edge.edge_runtime.backends.pytorch import find_device

    find_device(device)


def _start_cuda_provider(bundle: Bundle) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "onnx")):
        raise InputError("onnxruntime and onnx are not installed", field="--provider")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise InputError("onnxruntime-gpu is not installed", field="--provider")
    from qwen3vl_edge.edge_runtime.backends.cuda_provider.one_thread import call_in_gpu_thread
    from qwen3vl_edge.edge_runtime.backends.providers import start_provider

    # In that thread: at a reload the old bundle's pictures run, and an allocation beside them may fail a capture.
    call_in_gpu_thread(start_provider, bundle, "cuda")


@dataclass(frozen=True)
class Machine:
    """What the choice asks of this machine; each is called only while it is undecided.

    Attributes:
        library_version: of `tensorrt` or `tensorrt_rtx`; raises EngineError where it is not installed.
        start_torch: raises InputError where PyTorch does not run on that device.
        start_cuda_provider: raises InputError where ONNX Runtime's CUDA provider does not start.
    """

    gpu_is_present: Callable[[], bool] = gpu_is_present
    gpu: Callable[[], Gpu | None] = find_gpu
    library_version: Callable[[str], str] = _library_version
    start_torch: Callable[[str], None] = _start_torch
    start_cuda_provider: Callable[[Bundle], None] = _start_cuda_provider


@dataclass(frozen=True)
class _Candidate:
    """A backend in the order.

    Attributes:
        check: raises ContractError where it does not run this bundle here.
    """

    label: str
    name: str
    options: BackendOptions
    check: Callable[[], object]


def choose_backend(name: str, bundle: Bundle, options: BackendOptions, machine: Machine = Machine()) -> BackendChoice:
    """The backend that was named; for "auto" the first of the order that runs here.

    Raises:
        EngineError: `target` names an engine that does not run here.
        InputError: `device` or `dtype` ask for PyTorch, which does not run here.
        BundleError: the bundle has no such precision.
    """
    on_cpu = options if options.provider != AUTO_PROVIDER else replace(options, provider="cpu")
    if name != AUTO:
        return BackendChoice(name, on_cpu)
    if not machine.gpu_is_present():
        return BackendChoice("onnxruntime", on_cpu)
    if options.provider != AUTO_PROVIDER:
        return _chosen("onnxruntime", options, f"auto: --provider {options.provider}")
    obstacles, refusal = [], None
    for candidate in _candidates(bundle, options, machine):
        try:
            candidate.check()
        except ContractError as error:
            refusal = refusal or error
            obstacles.append(f"{candidate.label}: {error.message}")
            continue
        return _chosen(candidate.name, candidate.options, _reason(candidate.label, obstacles))
    if refusal is not None and (options.target is not None or _asks_for_torch(options)):
        raise refusal
    return _chosen("onnxruntime", on_cpu, _reason("ONNX Runtime on the CPU", obstacles))


def _chosen(name: str, options: BackendOptions, reason: str) -> BackendChoice:
    logger.info("backend %s, %s", name, reason)
    return BackendChoice(name, options, reason)


def _reason(label: str, obstacles: list[str]) -> str:
    return f"auto: {label}" + (f"; not {'; not '.join(obstacles)}" if obstacles else "")


def _asks_for_torch(options: BackendOptions) -> bool:
    return options.device != "cpu" or options.dtype != AUTO_DTYPE


def _candidates(bundle: Bundle, options: BackendOptions, machine: Machine) -> Iterator[_Candidate]:
    precision = options.precision or bundle.manifest.precision().precision
    # Named, so that no backend takes its own default in place of the first set's.
    named = replace(options, precision=precision, provider="cpu")
    if not _asks_for_torch(options):
        for library in LIBRARIES:
            yield _Candidate(
                f"engine of {library}",
                library,
                named,
                partial(_check_engine, bundle, library, named, machine),
            )
    if options.target is None:
        on_gpu = replace(named, device=options.device if options.device != "cpu" else "cuda")
        yield _Candidate(
            f"PyTorch on {on_gpu.device}", "pytorch", on_gpu, partial(_check_torch, bundle, on_gpu, machine)
        )
    if options.target is None and not _asks_for_torch(options):
        yield _Candidate(
            "ONNX Runtime on CUDA",
            "onnxruntime",
            replace(named, provider="cuda"),
            partial(_check_cuda_provider, bundle, precision, machine),
        )


def _check_engine(bundle: Bundle, library: str, options: BackendOptions, machine: Machine) -> None:
    """Raises: EngineError: the library is not installed, or the bundle has no engine of it that fits this GPU."""
    version = machine.library_version(library)
    choose_engine(bundle, library, version, machine.gpu(), options.precision, options.target)


def _check_torch(bundle: Bundle, options: BackendOptions, machine: Machine) -> None:
    """Raises: InputError: PyTorch cannot serve this bundle in this precision here."""
    precision = options.precision if options.dtype == AUTO_DTYPE else options.dtype
    if precision not in TORCH_PRECISIONS:
        raise InputError(f"it does not compute in {precision}", field="--precision")
    if options.model is None:
        raise InputError("it needs the checkpoint (--model)", field="--model", remedy="Give --model FOLDER.")
    if float32_layers(bundle, precision):
        raise InputError("the fp16 set needs float32 for some layers", field="--precision")
    machine.start_torch(options.device)


def _check_cuda_provider(bundle: Bundle, precision: str, machine: Machine) -> None:
    """Raises: EngineError, InputError: the CUDA provider cannot serve this set here."""
    if PRECISIONS[bundle.manifest.precision(precision).precision].quantized is not None:
        raise EngineError(f"{precision} is made for CPUs and for engines", field="--precision")
    machine.start_cuda_provider(bundle)
