"""Reads a `.npy` array without NumPy's own reader, whose header is a Python literal and whose objects are pickles.

Format: numpy/lib/format.py, versions 1.0 and 2.0.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.errors import WireError

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1024
DTYPES = ("<f2", "<f4", "<i4", "<i8")
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{1,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,18}, ){0,7}(?:\d{1,18},?)?)\), \} *\n",
    re.ASCII,
)


def read_npy(data: bytes, field: str) -> NDArray[Any]:
    """The array in a `.npy` file, as a read-only view of it.

    Returns:
        float16, float32, int32 or int64, little-endian, in C order.

    Raises:
        WireError: another dtype or order, or not such a file; names the part.
    """
    if len(data) < 12 or not data.startswith(MAGIC) or data[6:8] not in (b"\x01\x00", b"\x02\x00"):
        raise _bad(field, "its beginning", "version 1.0 or 2.0")
    width = 2 if data[6] == 1 else 4
    size, start = int.from_bytes(data[8 : 8 + width], "little"), 8 + width
    if size > MAX_HEADER_BYTES or start + size > len(data):
        raise _bad(field, "length of the header", f"at most {MAX_HEADER_BYTES}, within the file", size)
    header = data[start : start + size]
    found = _HEADER.fullmatch(header.decode("latin-1"))
    if found is None:
        raise _bad(field, "header", "descr, fortran_order and shape as NumPy writes them", ascii(header)[:80])
    if found["descr"] not in DTYPES or found["fortran"] == "True":
        order = "Fortran" if found["fortran"] == "True" else "C"
        raise _bad(field, "array", f"{' or '.join(DTYPES)} in C order", f"{found['descr']} in {order} order")
    shape = tuple(int(number) for number in found["shape"].replace(",", " ").split())
    dtype = np.dtype(found["descr"])
    if math.prod(shape) * dtype.itemsize != len(data) - start - size:
        wanted = f"{math.prod(shape) * dtype.itemsize} bytes for {list(shape)}"
        raise _bad(field, "data", wanted, f"{len(data) - start - size} bytes")
    return np.frombuffer(data, dtype=dtype, offset=start + size).reshape(shape)


def _bad(field: str, what: str, expected: object = None, got: object = None) -> WireError:
    return WireError(f"not a .npy array that is read here: {what}", field=field, expected=expected, got=got)
