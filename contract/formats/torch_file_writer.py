"""Writes a NumPy array as `torch.save` writes a tensor, so that a device without torch can feed servers that expect it.

The container is a ZIP file of stored entries: `<name>/data.pkl`, a pickle that rebuilds the tensor from a storage
that it names by a persistent id, and `<name>/data/<key>`, that storage's bytes. Format: torch/serialization.py.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import WireError

# Fixed, so that the same array gives the same bytes.
_STAMP = (1980, 1, 1, 0, 0, 0)
_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.int64): "LongStorage",
}


def torch_bytes(array: NDArray[Any]) -> bytes:
    """What `torch.save` would write of this array as a tensor; `torch.load(weights_only=True)` reads it.

    Args:
        array: float32, float16 or int64, of any shape.

    Raises:
        WireError: another dtype.
    """
    if array.dtype not in _STORAGES:
        known = ", ".join(str(dtype) for dtype in _STORAGES)
        raise WireError("array cannot be written as a torch tensor", field="dtype", expected=known, got=array.dtype)
    array = np.ascontiguousarray(array).reshape(array.shape)  # a scalar stays one
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as container:
        for name, data in (
            ("data.pkl", _pickled(array)),
            ("byteorder", sys.byteorder.encode()),
            ("data/0", array.tobytes()),
            ("version", b"3\n"),
        ):
            container.writestr(zipfile.ZipInfo(f"archive/{name}", _STAMP), data)
    return out.getvalue()


def _pickled(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    _TensorPickler(out, protocol=2).dump(_Tensor(array))
    return out.getvalue()


class _Global:
    """Stands for a name of torch, which need not be installed here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *_: Any) -> Any:  # pickle wants what a reduction calls to be callable
        raise TypeError(f"{self.module}.{self.name} is only named here")


class _Storage:
    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class _Tensor:
    """Pickled as the call torch.load makes: rebuild(storage, offset, shape, strides, requires_grad, hooks)."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(stride // self._array.itemsize for stride in self._array.strides)
        rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
        return rebuild, (_Storage(self._array), 0, self._array.shape, strides, False, OrderedDict())


class _TensorPickler(pickle._Pickler):  # the Python one: its `save_global` can be told what to write
    """Writes `_Global` as the name it stands for, and `_Storage` as a persistent id."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = _Global("torch", _STORAGES[value.array.dtype])
        return "storage", kind, "0", "cpu", value.array.size

    def _save_name(self, value: _Global) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())  # type: ignore[attr-defined]

    dispatch[_Global] = _save_name
