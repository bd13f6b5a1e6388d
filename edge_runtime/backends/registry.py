"""The encoder backends by name; each library is imported when its backend is loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend


def _onnxruntime() -> Callable[[Bundle, BackendOptions], EncoderBackend]:
    from qwen3vl_edge.edge_runtime.backends import onnxruntime

    return onnxruntime.load


def _pytorch() -> Callable[[Bundle, BackendOptions], EncoderBackend]:
    from qwen3vl_edge.edge_runtime.backends import pytorch

    return pytorch.load


def _tensorrt(library: str) -> Callable[[Bundle, BackendOptions], EncoderBackend]:
    from qwen3vl_edge.edge_runtime.backends import tensorrt

    return partial(tensorrt.load, library)


def _openvino(name: str) -> Callable[[Bundle, BackendOptions], EncoderBackend]:
    from qwen3vl_edge.edge_runtime.backends import openvino

    return partial(openvino.load, name)


# Adding a backend is one line here and one file in backends/.
BACKENDS: dict[str, Callable[[], Callable[[Bundle, BackendOptions], EncoderBackend]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": partial(_openvino, "openvino"),
    "openvino-bf16": partial(_openvino, "openvino-bf16"),
    "pytorch": _pytorch,
    "tensorrt": partial(_tensorrt, "tensorrt"),
    "tensorrt_rtx": partial(_tensorrt, "tensorrt_rtx"),
}


EXTRAS = {"openvino": "openvino", "openvino-bf16": "openvino", "tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


def load_backend(name: str, bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load a backend by name, importing its library only now.

    Raises:
        InputError: no such backend, or its library is not installed.
    """
    if name not in BACKENDS:
        raise InputError("no such backend", field="--backend", expected=" or ".join(BACKENDS), got=name)
    try:
        load = BACKENDS[name]()
    except ImportError as error:
        raise InputError(
            f"backend {name} needs a package that is not installed ({error.name})",
            field="--backend",
            remedy=f"Install it with: pip install 'qwen3vl-edge[{EXTRAS.get(name, 'edge')}]'",
        ) from None
    return load(bundle, options)
