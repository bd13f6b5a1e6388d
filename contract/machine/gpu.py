"""An NVIDIA GPU of this machine, as the driver reports it; None where there is none."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        compute_capability: as "8.7".
        memory: bytes; on a Jetson the memory that GPU and CPU share.
        driver: the CUDA version that the driver supports, as "12.6".
    """

    name: str
    compute_capability: str
    memory: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, {self.memory / 2**30:.0f} GiB)"


def find_gpu(index: int = 0) -> Gpu | None:
    """The GPU of that number, or None: no such GPU, no driver, or cuda-bindings not installed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        _value(driver.cuInit(0))
        device = _value(driver.cuDeviceGet(index))
        attribute = driver.CUdevice_attribute
        major = _value(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
        minor = _value(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
        name = bytes(_value(driver.cuDeviceGetName(128, device))).split(b"\0")[0].decode()
        version = int(_value(driver.cuDriverGetVersion()))
        memory = int(_value(driver.cuDeviceTotalMem(device)))
    except RuntimeError:  # cuda-bindings raises it where libcuda is missing; `_value` where a call fails
        return None
    return Gpu(name, f"{major}.{minor}", memory, f"{version // 1000}.{version % 1000 // 10}")


def gpu_is_present() -> bool:
    """Whether the driver shows this process a GPU; needs no package, and creates no CUDA context.

    For environments without cuda-bindings; `find_gpu` reads more of the GPU. A process forked after it cannot use CUDA:
    vLLM's workers are spawned (`server/engines/vllm/start.py`).
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _value(result: tuple[Any, ...]) -> Any:
    """The value of a cuda-bindings result, (status, value)."""
    if int(result[0]) != 0:
        raise RuntimeError(str(result[0]))
    return result[1] if len(result) > 1 else None
