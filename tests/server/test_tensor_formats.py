"""Tensors as clients send them: read to the bit as torch and safetensors write them; nothing else runs or allocates."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_edge.contract.errors import ContractError, LimitError, WireError
from qwen3vl_edge.contract.formats.torch_file import torch_bytes
from qwen3vl_edge.server.openai.tensor_formats import decode_base64, read_tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int32, torch.int64)
SHAPES = ((), (3,), (1, 3), (0, 4), (2, 3), (1, 300), (70_000, 1), (2, 3, 4), (1, 2, 3, 4))


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def as_npy(array: Any) -> bytes:
    """A container that is not accepted; its header is a Python literal, and with objects its data a pickle."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100).to(dtype)


def assert_read(data: bytes, tensor: torch.Tensor) -> None:
    found = read_tensor(data, "x")
    expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_read_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = tensor_of(dtype, shape)
    assert_read(saved(tensor), tensor)
    assert_read(saved(tensor.clone().requires_grad_() if dtype.is_floating_point else tensor), tensor)
    assert_read(safetensors.torch.save({"embeds": tensor}), tensor)
    if dtype in (torch.float16, torch.float32, torch.int64):
        assert_read(torch_bytes(tensor.numpy()), tensor)


def test_a_slice_of_a_larger_storage_is_read() -> None:
    whole = tensor_of(torch.float32, (10, 3))
    assert_read(saved(whole[3:5]), whole[3:5])


def test_bfloat16_becomes_float32_exactly_for_every_value() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    found = read_tensor(saved(every), "x")
    np.testing.assert_array_equal(found.view(np.uint32), every.float().numpy().view(np.uint32))


class Reduces:
    """What an attacker sends: unpickling it calls something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def container(program: bytes, data: bytes = bytes(24), **others: bytes) -> bytes:
    """A file as torch.save's, with any program."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": program, "data/0": data, "version": b"3\n", **others}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def program(
    shape: str = "K\x02K\x03\x86q\x06",
    strides: str = "K\x03K\x01\x86q\x07",
    storage: str = "ctorch\nFloatStorage\nq\x02",
    count: str = "K\x06",
    offset: str = "K\x00",
    end: str = ".",
) -> bytes:
    """torch.save's program for a float32 [2, 3], or with parts of it replaced."""
    text = f"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\x00\x00\x00storageq\x01{storage}"
    text += f"X\x01\x00\x00\x000q\x03X\x03\x00\x00\x00cpuq\x04{count}tq\x05Q{offset}{shape}{strides}\x89"
    return (text + f"ccollections\nOrderedDict\nq\x08)Rq\x09tq\x0aRq\x0b{end}").encode("latin-1")


def test_the_program_written_here_is_torchs_own() -> None:
    with zipfile.ZipFile(io.BytesIO(saved(torch.zeros(2, 3)))) as archive:
        assert archive.read("archive/data.pkl") == program()
    assert read_tensor(container(program()), "x").shape == (2, 3)


def zipped(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", program("J\x00\x00\x00\x10\x85q\x06", "K\x01\x85q\x07"))
        archive.writestr("archive/data/0", bytes(2**20))
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "data/0"):
            archive.writestr(f"archive/{name}", program() if name == "data.pkl" else bytes(24))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", program())
    return buffer.getvalue()


RAN: list[str] = []


def mark() -> None:
    RAN.append("a pickle ran")


HUGE = "\x8a\x08" + "\xff" * 7 + "\x0f"
HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    ("os.system", lambda: container(pickle.dumps(Reduces(os.system, "true"), 2)), "data.pkl"),
    ("a function", lambda: container(pickle.dumps(Reduces(mark), 2)), "data.pkl"),
    ("a bare pickle of one", lambda: pickle.dumps(Reduces(mark)), "container"),
    ("npy of one", lambda: as_npy(np.array([Reduces(mark)])), "torch.save's ZIP file or safetensors"),
    ("eval", lambda: container(pickle.dumps(Reduces(eval, "1/0"), 2)), "data.pkl"),
    (
        "eval in the tensor's place",
        lambda: container(program(offset="c__builtin__\neval\n(X\x01\x00\x00\x001tR")),
        "num",
    ),
    ("a call after the tensor", lambda: container(program(end="cos\nsystem\n(X\x02\x00\x00\x00idtR.")), "data.pkl"),
    ("bytes after the end", lambda: container(program(end="..")), "nothing after"),
    ("another type's name", lambda: container(program(storage="cos\nsystem\nq\x02")), "torch"),
    ("unknown storage", lambda: container(program(storage="ctorch\nload\nq\x02")), "type of the tensor"),
    ("nested", lambda: container(program(shape="((((((((K\x02tttttttt")), "whole numbers"),
    ("huge shape", lambda: container(program(shape=f"{HUGE}{HUGE}\x86", strides=f"{HUGE}K\x01\x86")), "shape"),
    ("huge storage", lambda: container(program(count=HUGE)), "data/0"),
    ("storage of another size", lambda: container(program(count="K\x05")), "data/0"),
    ("beyond the storage", lambda: container(program(offset="K\x01")), "shape"),
    ("negative offset", lambda: container(program(offset="J\xff\xff\xff\xff")), "number"),
    ("negative stride", lambda: container(program(strides="J\xfd\xff\xff\xffK\x01\x86")), "number"),
    ("zero stride", lambda: container(program(strides="K\x00K\x00\x86")), "contiguous"),
    ("rank of strides", lambda: container(program(strides="K\x01\x85")), "contiguous"),
    ("rank of 9", lambda: container(program(shape="(" + "K\x01" * 9 + "t")), "rank"),
    ("transposed", lambda: saved(torch.zeros(2, 3).T), "contiguous"),
    ("parameter", lambda: saved(torch.nn.Parameter(torch.zeros(2))), "data.pkl"),
    ("dict", lambda: saved({"a": torch.zeros(2)}), "data.pkl"),
    ("list", lambda: saved([torch.zeros(2)]), "data.pkl"),
    ("sparse", lambda: saved(torch.eye(2).to_sparse()), "data.pkl"),
    ("float64", lambda: saved(torch.zeros(2, dtype=torch.float64)), "type of the tensor"),
    ("legacy torch.save", lambda: saved(torch.zeros(2), _use_new_zipfile_serialization=False), "container"),
    ("bare pickle", lambda: pickle.dumps(OrderedDict(a=1)), "container"),
    ("deflated", lambda: zipped(zipfile.ZIP_DEFLATED), "compressed"),
    ("bzip2", lambda: zipped(zipfile.ZIP_BZIP2), "compressed"),
    ("big-endian", lambda: container(program(), byteorder=b"big"), "byteorder"),
    ("another entry", lambda: container(program(), **{"code/x.py": b"1"}), "entries"),
    ("an entry twice", twice, "twice"),
    ("no data", lambda: container(program().replace(b"0q\x03", b"7q\x03")), "entries"),
    ("long program", lambda: container(program() + bytes(2000)), "data.pkl"),
    ("empty", lambda: b"", "container"),
    ("text", lambda: b"not a tensor at all", "container"),
    ("npy", lambda: as_npy(np.zeros((2, 3), np.float32)), "torch.save's ZIP file or safetensors"),
    ("npy of code", lambda: b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('id')  \n", "unknown tensor"),
    ("safetensors of two", lambda: safetensors.torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}), "one tensor"),
    ("safetensors of bools", lambda: safetensors.torch.save({"a": torch.zeros(1, dtype=torch.bool)}), "one tensor"),
    ("safetensors cut off", lambda: safetensors.torch.save({"a": torch.zeros(2)})[:-1], "length"),
    ("safetensors huge", lambda: struct.pack("<Q", 2**40) + b"{}", "header length"),
]


@pytest.mark.parametrize(("make", "words"), [item[1:] for item in HOSTILE], ids=[item[0] for item in HOSTILE])
def test_anything_else_is_refused_by_name_and_takes_no_memory(make: Callable[[], bytes], words: str) -> None:
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=words) as caught:
            read_tensor(data, "messages.0.content.0")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.field == "messages.0.content.0"
    assert not RAN


GOOD = [
    saved(torch.arange(6, dtype=torch.float32).reshape(2, 3)),
    torch_bytes(np.arange(6, dtype=np.float16).reshape(2, 3)),
    safetensors.torch.save({"a": torch.arange(6, dtype=torch.float32).reshape(2, 3)}),
]


@pytest.mark.parametrize("data", GOOD, ids=["torch", "edge", "safetensors"])
def test_no_byte_changed_brings_another_error(data: bytes) -> None:
    """Every byte, in several ways: it is refused, or it was none that matters to the tensor's size."""
    for place in range(len(data)):
        for value in (0, 0xFF, data[place] ^ 1, data[place] ^ 0x80):
            changed = data[:place] + bytes([value]) + data[place + 1 :]
            with contextlib.suppress(ContractError):
                assert read_tensor(changed, "x").nbytes <= 48


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(GOOD),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=6)), min_size=1, max_size=4),
)
def test_no_edit_brings_another_error(data: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    for where, cut, new in edits:
        place = int(where * len(data))
        data = data[:place] + new + data[place + cut :]
    with contextlib.suppress(ContractError):
        assert read_tensor(data, "x").nbytes <= 2 * len(data)


def test_base64_is_measured_before_it_is_decoded() -> None:
    text = base64.b64encode(bytes(10)).decode()
    assert decode_base64(text, "x", 10) == bytes(10)
    with pytest.raises(LimitError, match="at most 6 bytes"):
        decode_base64(text, "x", 6)
    for bad in ("a", "%%%%", "é===", "AA AA"):
        with pytest.raises(WireError, match="base64"):
            decode_base64(bad, "x", 100)
