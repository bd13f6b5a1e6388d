"""ONNX Runtime's execution providers by short name: the package of each, and the options that preserve parity.

A provider that cannot start makes ONNX Runtime fall back to the CPU with a line in its log. Here it is an error:
a request for a GPU must not run on the CPU unnoticed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.trt_plans import ENGINE_FOLDER
from qwen3vl_edge.contract.errors import InputError

# Where a graph given as bytes finds its weights; without it they are looked for in the working folder.
WEIGHTS_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        execution_provider: ONNX Runtime's name for it.
        plugin: the package that has it as a plug-in, if it is not part of ONNX Runtime itself.
        install: how to get it.
        options: from a folder for caches to the provider's options.
    """

    execution_provider: str
    plugin: str | None
    install: str
    options: Callable[[Path], dict[str, str]]


def _cuda(cache: Path) -> dict[str, str]:
    return {"use_tf32": "0"}  # 1 by default: fp32 products with 10 bits of mantissa


def _tensorrt(cache: Path) -> dict[str, str]:
    folder = str(cache)
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
    }


def _tensorrt_rtx(cache: Path) -> dict[str, str]:
    return {"nv_runtime_cache_path": str(cache)}


def _openvino(cache: Path) -> dict[str, str]:
    # By default OpenVINO computes fp32 graphs in bf16 where the CPU has it.
    settings = {"CPU": {"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": str(cache)}}
    return {"device_type": "CPU", "load_config": json.dumps(settings)}


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", None, "pip install onnxruntime", lambda cache: {}),
    "cuda": Provider("CUDAExecutionProvider", None, "pip install 'onnxruntime-gpu[cuda,cudnn]'", _cuda),
    # The file as it is, run as any provider runs it: to tell what the edited copy does.
    "cuda-unfused": Provider("CUDAExecutionProvider", None, "pip install 'onnxruntime-gpu[cuda,cudnn]'", _cuda),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", None, "pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt", _tensorrt
    ),
    "nv-tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "onnxruntime_ep_nv_tensorrt_rtx",
        "pip install onnxruntime-ep-nv-tensorrt-rtx",
        _tensorrt_rtx,
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "onnxruntime_ep_openvino",
        "pip install onnxruntime-ep-openvino (Intel), or onnxruntime-openvino in place of onnxruntime-gpu (any x86-64)",
        _openvino,
    ),
}


NEED_CUDA = ("cuda", "cuda-unfused", "tensorrt")


def find_provider(name: str) -> Provider:
    """The provider of that short name.

    Raises:
        InputError: no such provider.
    """
    if name not in PROVIDERS:
        raise InputError("no such provider", field="--provider", expected=" or ".join(PROVIDERS), got=name)
    return PROVIDERS[name]


def make_session(
    path: Path,
    settings: Any,
    name: str,
    bundle: Bundle,
    disabled_optimizers: frozenset[str] = frozenset(),
    model: bytes | None = None,
    more_options: Mapping[str, str] | None = None,
) -> Any:
    """An ONNX Runtime session of a graph on that provider, and on no other.

    Args:
        path: the graph; weights that it refers to lie beside it.
        settings: `SessionOptions`.
        disabled_optimizers: ONNX Runtime's graph optimizers to leave out.
        model: an edited copy of the graph, loaded in its place.
        more_options: of the provider, for this session alone.

    Raises:
        InputError: the provider is not installed, has no device here, or did not start; or the graph is bad.
    """
    provider = find_provider(name)
    options = provider.options(_cache_folder(bundle, name)) | dict(more_options or {})
    if name in NEED_CUDA:
        _preload_cuda()
    if provider.execution_provider in ort.get_available_providers():
        arguments: dict[str, Any] = {"providers": [(provider.execution_provider, options)]}
    else:
        arguments = {}
        settings.add_provider_for_devices(plugin_devices(name), plugin_options(name, options))
    if model is not None:
        settings.add_session_config_entry(WEIGHTS_FOLDER_ENTRY, str(path.parent))
    try:
        with _quiet():
            session = ort.InferenceSession(
                model or str(path), settings, disabled_optimizers=set(disabled_optimizers), **arguments
            )
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise InputError(f"ONNX Runtime cannot load {path}: {error}", field=path.name) from None
    running = session.get_providers()
    if running[0] != provider.execution_provider:
        raise InputError(
            f"provider {name} did not start, and ONNX Runtime fell back{_missing_library(name)}",
            field="--provider",
            expected=provider.execution_provider,
            got=running[0],
            remedy=f"It needs its libraries and its device: {provider.install}",
        )
    return session


def start_provider(bundle: Bundle, name: str) -> None:
    """Load the smallest graph on a provider and free it.

    Raises:
        InputError: the provider does not run here; has the reason.
    """
    graphs = [graph for item in bundle.manifest.precisions for graph in item.graphs if graph.grid is not None]
    sized = sorted(graphs, key=lambda graph: 0 if graph.grid is None else graph.grid.patches)
    graph = sized[0] if sized else bundle.manifest.precisions[0].graphs[0]
    make_session(bundle.graph_path(graph), ort.SessionOptions(), name, bundle)


def _cache_folder(bundle: Bundle, name: str) -> Path:
    """The folder for a provider's compiled files; None for a read-only bundle."""
    folder = bundle.path / ENGINE_FOLDER / f"onnxruntime-{name}"
    if name not in ("cpu", "cuda", "cuda-unfused"):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    return folder


def _preload_cuda() -> None:
    """Load CUDA's libraries from the nvidia packages, where torch's installation put them."""
    with _quiet():
        ort.preload_dlls()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime prints failures, also to stdout, and continues; here they become an error of one line."""
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)


def _missing_library(name: str) -> str:
    """Why the library of a built-in provider does not load, which ONNX Runtime writes to its log alone."""
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name.removesuffix('-unfused')}.so"
    if not library.exists():
        return ""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f" ({error})"
    return ""


def plugin_devices(name: str) -> list[Any]:
    """The devices that a plug-in provider offers here.

    Raises:
        InputError: its package is not installed, or it finds no device.
    """
    provider = find_provider(name)
    remedy = f"Get it with: {provider.install}"
    try:
        package = importlib.import_module(provider.plugin or "")
    except (ImportError, ValueError):
        raise InputError(
            f"provider {name} is not installed", field="--provider", expected=" or ".join(usable()), remedy=remedy
        ) from None
    _register(name, package.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.execution_provider]
    if not devices:
        raise InputError(f"provider {name} finds no device it can use here", field="--provider", remedy=remedy)
    return devices[:1]


def plugin_options(name: str, options: dict[str, str]) -> dict[str, str]:
    """A plug-in takes its device from the device list, not from an option."""
    return {key: value for key, value in options.items() if key != "device_type"}


_registered: set[str] = set()


def _register(name: str, library: str) -> None:
    """ONNX Runtime takes each plug-in library once per process."""
    if name not in _registered:
        ort.register_execution_provider_library(name, library)
        _registered.add(name)


def usable() -> list[str]:
    """Short names of the providers that ONNX Runtime lists here; those that need a device may still not start."""
    listed = ort.get_available_providers()
    return [name for name, provider in PROVIDERS.items() if provider.execution_provider in listed]
