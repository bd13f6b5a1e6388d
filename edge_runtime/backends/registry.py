"""The encoder backends by name: how each is loaded, from which extra it installs, which packages it computes with.

Adding a backend is one line in BACKENDS and one file beside this one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend

Load = Callable[[Bundle, BackendOptions], EncoderBackend]


@dataclass(frozen=True)
class BackendEntry:
    """One backend.

    Attributes:
        loader: imports its library and returns its `load`.
        extra: of this project, `pip install 'qwen3vl-edge[extra]'`.
        packages: distributions that it computes with, of which some may be missing.
    """

    loader: Callable[[], Load]
    extra: str
    packages: tuple[str, ...]


def _onnxruntime() -> Load:
    from qwen3vl_edge.edge_runtime.backends import onnxruntime

    return onnxruntime.load


def _pytorch() -> Load:
    from qwen3vl_edge.edge_runtime.backends import pytorch

    # The oracle alone needs it, and imports it when it loads a checkpoint; a missing one is named here.
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
    return pytorch.load


def _tensorrt(library: str) -> Load:
    from qwen3vl_edge.edge_runtime.backends import tensorrt

    return partial(tensorrt.load, library)


def _openvino(name: str) -> Load:
    from qwen3vl_edge.edge_runtime.backends import openvino

    return partial(openvino.load, name)


BACKENDS = {
    "onnxruntime": BackendEntry(_onnxruntime, "edge", ("onnxruntime", "onnxruntime-gpu")),
    "openvino": BackendEntry(partial(_openvino, "openvino"), "openvino", ("openvino",)),
    "openvino-bf16": BackendEntry(partial(_openvino, "openvino-bf16"), "openvino", ("openvino",)),
    "pytorch": BackendEntry(_pytorch, "edge", ("torch", "transformers")),
    "tensorrt": BackendEntry(partial(_tensorrt, "tensorrt"), "tensorrt", ("tensorrt",)),
    "tensorrt_rtx": BackendEntry(partial(_tensorrt, "tensorrt_rtx"), "rtx", ("tensorrt-rtx-cu13", "tensorrt_rtx")),
}


def load_backend(name: str, bundle: Bundle, options: BackendOptions) -> EncoderBackend:
    """Load a backend by name, importing its library only now.

    Raises:
        InputError: no such backend, or its library is not installed.
    """
    if name not in BACKENDS:
        raise InputError("no such backend", field="--backend", expected=" or ".join(BACKENDS), got=name)
    try:
        load = BACKENDS[name].loader()
    except ImportError as error:
        raise InputError(
            f"backend {name} needs a package that is not installed ({error.name})",
            field="--backend",
            remedy=f"Install it with: pip install 'qwen3vl-edge[{BACKENDS[name].extra}]'",
        ) from None
    return load(bundle, options)


def library_versions(backend: str) -> list[str]:
    """The machine's architecture, and name and version of each package of a backend that is installed.

    Another release of a library may round otherwise, so these are a part of the embedding cache's identity.
    """
    versions = [platform.machine()]
    for name in BACKENDS[backend].packages if backend in BACKENDS else ():
        # Another package of the same library may be there, or it was installed without metadata.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return versions
