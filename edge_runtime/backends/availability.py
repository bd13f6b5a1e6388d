"""Which backends and providers can run a bundle on this machine, with the reason where one cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.trt_plans import LIBRARIES
from qwen3vl_edge.contract.errors import ContractError, EngineError
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.contract.machine.tensorrt_library import import_library
from qwen3vl_edge.edge_runtime.backends.selection import choose_engine
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions


@dataclass(frozen=True)
class Availability:
    """A backend, or a provider of it, on this machine.

    Attributes:
        backend: as `--backend` and `--provider` name it.
        runs: whether it loads here.
        detail: what it would run, or the reason why it cannot.
    """

    backend: str
    runs: bool
    detail: str


def list_availability(bundle: Bundle) -> list[Availability]:
    """Every backend, loaded as far as that goes without running a picture."""
    return [
        *_onnxruntime(bundle),
        *_openvino(bundle),
        *(_tensorrt(bundle, library) for library in LIBRARIES),
        *_pytorch(),
    ]


def _onnxruntime(bundle: Bundle) -> list[Availability]:
    if importlib.util.find_spec("onnxruntime") is None:
        return [Availability("onnxruntime", False, "onnxruntime is not installed")]
    from qwen3vl_edge.edge_runtime.backends.providers import PROVIDERS, start_provider

    return [_load_result(f"onnxruntime --provider {name}", partial(start_provider, bundle, name)) for name in PROVIDERS]


def _openvino(bundle: Bundle) -> list[Availability]:
    if importlib.util.find_spec("openvino") is None:
        return [Availability("openvino", False, "openvino is not installed; pip install 'qwen3vl-edge[openvino]'")]
    from qwen3vl_edge.edge_runtime.backends.openvino import HINTS, load

    return [_load_result(name, partial(load, name, bundle, BackendOptions())) for name in HINTS]


def _load_result(backend: str, start: Callable[[], object]) -> Availability:
    try:
        start()
    except ContractError as error:
        return Availability(backend, False, str(error))
    return Availability(backend, True, "every graph")


def _tensorrt(bundle: Bundle, library: str) -> Availability:
    try:
        version = str(import_library(library).__version__)
        record = choose_engine(bundle, library, version, find_gpu())
    except EngineError as error:
        return Availability(library, False, str(error))
    return Availability(library, True, f"{record.target} {record.precision}, {version}")


def _pytorch() -> list[Availability]:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return [Availability("pytorch", False, f"{' and '.join(missing)} not installed")]
    needs = "needs --model with the checkpoint that the bundle came from"
    on_cpu = Availability("pytorch", True, f"the oracle in fp32, also fp16 and bf16; {needs}")
    # Not asked of torch itself: importing it takes longer than all the rest.
    gpu = find_gpu()
    if gpu is None:
        return [on_cpu, Availability("pytorch --device cuda", False, "no NVIDIA GPU was found")]
    return [on_cpu, Availability("pytorch --device cuda", True, f"fp16, bf16 or fp32 on {gpu}; {needs}")]
