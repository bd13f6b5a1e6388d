"""What this machine can run of a bundle: each backend and provider, with the reason where it cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from contract.bundle import Bundle
from contract.engines import LIBRARIES
from contract.errors import ContractError, EngineError
from contract.gpu import find_gpu
from contract.tensorrt_library import import_library
from edge_runtime.engine import EngineOptions
from edge_runtime.plan_choice import choose_engine


@dataclass(frozen=True)
class Runnable:
    """One way to run the encoder here.

    Attributes:
        backend: as `--backend` and `--provider` name it.
        detail: what it would run, or why it cannot.
    """

    backend: str
    runs: bool
    detail: str


def what_runs_here(bundle: Bundle) -> list[Runnable]:
    """Every backend, tried as far as that goes without running a picture."""
    return [
        *_onnxruntime(bundle),
        *_openvino(bundle),
        *(_tensorrt(bundle, library) for library in LIBRARIES),
        _pytorch(),
    ]


def _onnxruntime(bundle: Bundle) -> list[Runnable]:
    if importlib.util.find_spec("onnxruntime") is None:
        return [Runnable("onnxruntime", False, "onnxruntime is not installed")]
    from edge_runtime.backends.providers import PROVIDERS, start_provider

    return [_tried(f"onnxruntime --provider {name}", partial(start_provider, bundle, name)) for name in PROVIDERS]


def _openvino(bundle: Bundle) -> list[Runnable]:
    if importlib.util.find_spec("openvino") is None:
        return [Runnable("openvino", False, "openvino is not installed; pip install 'qwen3vl-edge[openvino]'")]
    from edge_runtime.backends.openvino import HINTS, load

    return [_tried(name, partial(load, name, bundle, EngineOptions())) for name in HINTS]


def _tried(backend: str, start: Callable[[], object]) -> Runnable:
    try:
        start()
    except ContractError as error:
        return Runnable(backend, False, str(error))
    return Runnable(backend, True, "every graph")


def _tensorrt(bundle: Bundle, library: str) -> Runnable:
    try:
        version = str(import_library(library).__version__)
        record = choose_engine(bundle, library, version, find_gpu())
    except EngineError as error:
        return Runnable(library, False, str(error))
    return Runnable(library, True, f"{record.target} {record.precision}, {version}")


def _pytorch() -> Runnable:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return Runnable("pytorch", False, f"{' and '.join(missing)} not installed")
    return Runnable("pytorch", True, "the oracle; needs --model with the checkpoint that the bundle came from")
