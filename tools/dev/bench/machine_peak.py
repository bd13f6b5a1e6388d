"""What this machine can do at best, measured: matrix products per second, and bytes moved per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch

LARGE_ENOUGH_SECONDS = 0.1  # of one product
LEAST_RUNS, LEAST_SECONDS = 5, 1.0  # a shared machine is at its best now and then


def machine_peaks(threads: int = 0, least_seconds: float = LEAST_SECONDS) -> dict[str, float]:
    """Products per second by type ("fp32", "fp16", "bf16", on a CPU "int8"), and bytes moved per second as "bytes".

    The best of several large products and copies, on the GPU where there is one, else on the CPU. A CPU's float32 is
    the better of PyTorch's and ONNX Runtime's: PyTorch was seen at 2/5 of what ONNX Runtime makes of the same product
    (Zen 5), and a floor above what an encoder reaches would be none.

    Args:
        threads: of the CPU; 0 for all.
        least_seconds: that each product is repeated for; little of it measures small products too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kinds = ("fp32", "bf16", "int8") if device.type == "cpu" else ("fp32", "fp16", "bf16")
        peaks = {dtype: _products_per_second(dtype, device, least_seconds) for dtype in kinds}
        if device.type == "cpu":
            peaks["fp32"] = max(peaks["fp32"], _onnxruntime_products_per_second(threads, least_seconds))
            peaks["fp16"] = peaks["fp32"]  # a CPU multiplies float16 in float32
        return peaks | {"bytes": bytes_per_second(device, least_seconds)}
    finally:
        torch.set_num_threads(before)


def bytes_per_second(device: torch.device, least_seconds: float = LEAST_SECONDS) -> float:
    """The best of several copies, reading and writing counted."""
    block, other = (torch.ones(64 * 2**20, device=device) for _ in range(2))
    return 2 * block.numel() * block.element_size() / _best(lambda: other.copy_(block), device, least_seconds)


def _products_per_second(dtype: str, device: torch.device, least_seconds: float) -> float:
    # A CPU without bfloat16 multiplies it hundreds of times slower: start small there.
    size = 8192 if device.type == "cuda" else 256
    work = _product(dtype, size, device)
    enough = min(LARGE_ENOUGH_SECONDS, least_seconds)
    while device.type == "cpu" and size < 2048 and _seconds(work, device) < enough:
        size *= 2
        work = _product(dtype, size, device)
    return 2 * size**3 / _best(work, device, least_seconds)


def _onnxruntime_products_per_second(threads: int, least_seconds: float, size: int = 2048) -> float:
    from onnx import TensorProto, helper

    names, shape = ("a", "b", "c"), (size, size)
    a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {name: np.random.default_rng(0).standard_normal(shape, np.float32) for name in names[:2]}
    return 2 * size**3 / _best(lambda: session.run(None, feeds), torch.device("cpu"), least_seconds)


def _product(dtype: str, size: int, device: torch.device) -> Callable[[], Any]:
    if dtype == "int8":
        return _int8_product(size)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    one, other = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    return lambda: one @ other


def _int8_product(size: int) -> Callable[[], Any]:
    """On the CPU: PyTorch has no public product of int8 on a GPU."""
    weight = torch.quantize_per_tensor(torch.randn(size, size), 0.01, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    values = torch.quantize_per_tensor(torch.randn(size, size), 0.01, 128, torch.quint8)
    return lambda: torch.ops.quantized.linear(values, packed, 0.1, 128)


def _best(work: Callable[[], Any], device: torch.device, least_seconds: float) -> float:
    _seconds(work, device)
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or sum(seconds) < least_seconds:
        seconds.append(_seconds(work, device))
    return min(seconds)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
