"""One tensor in the file format of `torch.save`: written without torch, and read without torch or unpickling.

The container is a ZIP file of stored entries: `<name>/data.pkl`, a pickle program that rebuilds the tensor from a
storage that it names by a persistent id, and `<name>/data/<key>`, that storage's bytes. Format:
torch/serialization.py.

A pickle program can call anything by name. The reader does not run it: it compares the program, opcode by opcode, with
the one that torch.save writes for one dense tensor, and rejects any other. So a client's bytes can only become an
array, no larger than the bytes themselves.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.formats.zip_entries import read_entries

MAGIC = b"PK\x03\x04"
MAX_PROGRAM_BYTES = 1024  # about 160 for a tensor of rank 3
MAX_RANK = 8
_STORAGES = {
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "FloatStorage": "<f4",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
}
# Dtypes that can be written, in this machine's byte order; the file records that order.
_WRITTEN = {np.dtype(_STORAGES[name][1:]): name for name in ("FloatStorage", "HalfStorage", "LongStorage")}
_STAMP = (1980, 1, 1, 0, 0, 0)  # date of each entry: fixed, so that the same array gives the same bytes
_LOCATION = re.compile(r"cpu|cuda:\d{1,3}", re.ASCII)
_KEY = re.compile(r"\d{1,9}", re.ASCII)
# Metadata entries that releases of torch write beside the tensor's own two.
_OTHERS = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")


def torch_bytes(array: NDArray[Any]) -> bytes:
    """The file that `torch.save` would write for this array as a tensor; `torch.load(weights_only=True)` reads it.

    Args:
        array: float32, float16 or int64, of any shape.

    Raises:
        WireError: an unsupported dtype.
    """
    if array.dtype not in _WRITTEN:
        known = ", ".join(str(dtype) for dtype in _WRITTEN)
        raise WireError("array cannot be written as a torch tensor", field="dtype", expected=known, got=array.dtype)
    array = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes a scalar 1-D
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
    _TensorPickler(out, protocol=2).dump(_Rebuilt(array))
    return out.getvalue()


class _Global:
    """Placeholder for a name of torch, which need not be installed."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *_: Any) -> Any:  # pickle requires the function of a reduction to be callable
        raise TypeError(f"{self.module}.{self.name} is a placeholder and cannot be called")


class _Storage:
    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class _Rebuilt:
    """Pickled as the call that torch.load runs: rebuild(storage, offset, shape, strides, requires_grad, hooks)."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(stride // self._array.itemsize for stride in self._array.strides)
        rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
        return rebuild, (_Storage(self._array), 0, self._array.shape, strides, False, OrderedDict())


class _TensorPickler(pickle._Pickler):  # the Python one: its dispatch can be overridden
    """Writes `_Global` as a global name, and `_Storage` as a persistent id."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = _Global("torch", _WRITTEN[value.array.dtype])
        return "storage", kind, "0", "cpu", value.array.size

    def _save_name(self, value: _Global) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())  # type: ignore[attr-defined]

    dispatch[_Global] = _save_name


def read_torch(data: bytes, field: str) -> NDArray[Any]:
    """The tensor in a file of `torch.save`.

    Args:
        data: the whole file.
        field: the field that an error names.

    Returns:
        float16, float32, int32 or int64 as a read-only view of `data`; bfloat16 as float32, which holds it exactly.

    Raises:
        WireError: not one dense, contiguous tensor of these dtypes; names the part at fault.
    """
    entries = _by_last_name(read_entries(data, field), field)
    if (order := bytes(entries.get("byteorder", b"little"))) != b"little":
        raise _bad(field, "byteorder", "little", ascii(order)[:40])
    program = entries.get("data.pkl", memoryview(b""))
    if not 1 <= len(program) <= MAX_PROGRAM_BYTES:
        raise _bad(field, "data.pkl", f"1 to {MAX_PROGRAM_BYTES} bytes", f"{len(program)} bytes")
    tensor = _Program(bytes(program), field).tensor()
    stored = entries.pop(f"data/{tensor.key}", None)
    if stored is None or any(name not in ("data.pkl", *_OTHERS) for name in entries):
        raise _bad(field, "entries", f"data.pkl and data/{tensor.key}", ", ".join(sorted(entries))[:120])
    dtype = np.dtype(_STORAGES[tensor.storage])
    if len(stored) != tensor.stored * dtype.itemsize:
        expected = f"{tensor.stored * dtype.itemsize} bytes"
        raise _bad(field, f"data/{tensor.key}", expected, f"{len(stored)} bytes")
    count = math.prod(tensor.shape)
    if tensor.offset + count > tensor.stored:
        raise _bad(field, "shape", f"at most {tensor.stored} elements", f"{list(tensor.shape)} at {tensor.offset}")
    flat = np.frombuffer(stored, dtype=dtype)[tensor.offset : tensor.offset + count]
    if tensor.storage == "BFloat16Storage":
        flat = widened(flat)
    return flat.reshape(tensor.shape)


def widened(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, given as bits, as float32: bfloat16 is the upper 16 bits of a float32."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _by_last_name(entries: dict[str, memoryview], field: str) -> dict[str, memoryview]:
    """Entries by name without their common folder."""
    folders = {name.partition("/")[0] for name in entries}
    if len(folders) != 1 or not all("/" in name for name in entries):
        raise _bad(field, "entries", "all in one folder", ", ".join(sorted(entries))[:120])
    return {name.partition("/")[2]: value for name, value in entries.items()}


@dataclass(frozen=True)
class _Tensor:
    """The tensor that the program builds: `shape` at `offset` of `storage`, with `stored` elements in entry `key`."""

    storage: str
    key: str
    stored: int
    offset: int
    shape: tuple[int, ...]


class _Program:
    """Parser of `data.pkl`, which accepts its opcodes in exactly one order."""

    def __init__(self, code: bytes, field: str) -> None:
        self._code = code
        self._at = 0
        self._field = field

    def tensor(self) -> _Tensor:
        """`rebuild(storage, offset, shape, strides, requires_grad, OrderedDict())`, and nothing else."""
        self._take(b"\x80\x02", "protocol 2")
        self._take_name("torch._utils", "_rebuild_tensor_v2")
        self._take(b"((", "arguments of a tensor")
        if self._text() != "storage":
            raise self._unexpected("a storage")
        storage = self._storage()
        key, location, stored = self._text(), self._text(), self._integer()
        if not _KEY.fullmatch(key) or not _LOCATION.fullmatch(location):
            raise self._unexpected("a storage by number, on cpu or cuda")
        self._take(b"t", "the end of a storage")
        self._skip_memo()
        self._take(b"Q", "a storage")
        offset, shape, strides = self._integer(), self._integers(), self._integers()
        if self._next() not in (0x88, 0x89):  # requires_grad, true or false: irrelevant here
            raise self._unexpected("requires_grad")
        self._take_name("collections", "OrderedDict")
        for opcode in (b")", b"R", b"t", b"R"):
            self._take(opcode, "no hooks, and the end")
            self._skip_memo()
        self._take(b".", "the end")
        if self._at != len(self._code):
            raise self._unexpected("nothing after the end")
        self._check_contiguous(shape, strides)
        return _Tensor(storage, key, stored, offset, shape)

    def _check_contiguous(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        expected: list[int] = []
        step = 1
        for size in reversed(shape):
            expected.insert(0, step)
            step *= size
        same = len(shape) == len(strides) and all(
            size == 1 or stride == dense for size, stride, dense in zip(shape, strides, expected, strict=True)
        )
        if 0 not in shape and not same:
            raise WireError(
                "the tensor is not contiguous",
                field=self._field,
                expected=f"strides {expected} for {list(shape)}",
                got=list(strides),
                remedy="Save tensor.contiguous().",
            )

    def _storage(self) -> str:
        name = self._name("torch")
        if name not in _STORAGES:
            known = ", ".join(name.removesuffix("Storage") for name in _STORAGES)
            raise _bad(self._field, "type of the tensor", known, ascii(name)[:60])
        return name

    def _integers(self) -> tuple[int, ...]:
        """A tuple of non-negative integers."""
        values: list[int] = []
        marked = self._peek() == 0x28
        if marked:
            self._at += 1
        while self._peek() in _INTEGERS:
            values.append(self._integer())
            if len(values) > MAX_RANK:
                raise _bad(self._field, "rank", f"at most {MAX_RANK}")
        opcode = self._next()
        if opcode != (0x74 if marked else {0: 0x29, 1: 0x85, 2: 0x86, 3: 0x87}.get(len(values))):
            raise self._unexpected("a tuple of whole numbers")
        if values or marked:
            self._skip_memo()
        return tuple(values)

    def _integer(self) -> int:
        """A whole number from 0 to 2**62."""
        opcode = self._next()
        if opcode == 0x8A:  # LONG1: a length, then a two's complement number
            size = self._next()
            value = int.from_bytes(self._raw(size), "little", signed=True) if 1 <= size <= 8 else -1
        elif opcode in _INTEGERS:
            form = _INTEGERS[opcode]
            value = int(struct.unpack(form, self._raw(struct.calcsize(form)))[0])
        else:
            raise self._unexpected("a whole number")
        if not 0 <= value <= 2**62:
            raise _bad(self._field, "a number of data.pkl", "0 to 2**62", value)
        return value

    def _text(self) -> str:
        """A short ASCII string."""
        self._take(b"X", "a string")
        size = int.from_bytes(self._raw(4), "little")
        raw = self._raw(size) if size <= 32 else b"\xff"
        self._skip_memo()
        if not raw.isascii():
            raise self._unexpected("a short ASCII string")
        return raw.decode("ascii")

    def _take_name(self, module: str, name: str) -> None:
        if self._name(module) != name:
            raise self._unexpected(f"{module}.{name}")

    def _name(self, module: str) -> str:
        """The name of a GLOBAL in this module; it is only compared, never resolved."""
        start = f"c{module}\n".encode()
        self._take(start, f"a name of {module}")
        end = self._code.find(b"\n", self._at, self._at + 64)
        raw = self._code[self._at : end] if end >= 0 else b"\xff"
        if not raw.isascii():
            raise self._unexpected(f"a name of {module}")
        self._at = end + 1
        self._skip_memo()
        return raw.decode("ascii")

    def _skip_memo(self) -> None:
        """Skip a memo opcode: memoized values are never read back here."""
        if self._peek() == 0x71:  # BINPUT
            self._at += 1
            self._next()
        elif self._peek() == 0x72:  # LONG_BINPUT
            self._at += 1
            self._raw(4)

    def _take(self, expected: bytes, what: str) -> None:
        if not self._code.startswith(expected, self._at):
            raise self._unexpected(what)
        self._at += len(expected)

    def _raw(self, size: int) -> bytes:
        if self._at + size > len(self._code):
            raise _bad(self._field, "data.pkl", got="its end")
        self._at += size
        return self._code[self._at - size : self._at]

    def _next(self) -> int:
        return self._raw(1)[0]

    def _peek(self) -> int:
        return self._code[self._at] if self._at < len(self._code) else -1

    def _unexpected(self, expected: str) -> WireError:
        got = f"{self._code[self._at : self._at + 24]!r} near byte {self._at}"
        return _bad(self._field, "data.pkl", f"one dense tensor, here {expected}", got)


_INTEGERS = {0x4B: "<B", 0x4D: "<H", 0x4A: "<i", 0x8A: ""}  # BININT1, BININT2, BININT, and LONG1 by its own length


def _bad(field: str, what: str, expected: object = None, got: object = None) -> WireError:
    return WireError(
        f"not a tensor as torch.save writes it: {what}",
        field=field,
        expected=expected,
        got=got,
        remedy="Send torch.save of one float16, float32 or bfloat16 tensor, or safetensors.",
    )
