"""Named targets of `qwen3vl-edge build`: one row each; a new one needs a change of this table only.

Sources: the support matrices of TensorRT 10.3 to 11.4 and of TensorRT-RTX 1.7. That SM75 takes no fp32 matrix
products, that plans of several capabilities cost no more space, and that they are built without a GPU was
measured (docs/guides/engines.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.precision import PRECISIONS
from qwen3vl_edge.contract.errors import EngineError

GIB = 2**30


@dataclass(frozen=True)
class Target:
    """GPUs that an engine is built for.

    Attributes:
        library: "tensorrt", "tensorrt_rtx", or "any": whichever is installed.
        compute_capabilities: of its GPUs, as "8.7"; "8.0+" is that one and all later ones; () is the GPU here.
        precisions: that this target can compute.
        memory: bytes that the smallest device of the kind has; on a Jetson GPU and CPU share them.
        workspace: bytes that the builder may use for scratch memory, unless --workspace is given.
        ahead_of_time: built on any machine; otherwise on the device itself, since its plans are not portable.
        devices: devices and cards with this GPU.
    """

    name: str
    library: str
    compute_capabilities: tuple[str, ...]
    precisions: tuple[str, ...]
    memory: int
    workspace: int
    ahead_of_time: bool
    devices: str


def _precisions(*, fp32: bool = True, fp8: bool = True) -> tuple[str, ...]:
    """Precisions that a GPU computes; `fp32`, `fp8`: whether it has matrix products of these types."""
    computable = [item for item in PRECISIONS.values() if fp32 or item.rest != "fp32"]
    return tuple(item.name for item in computable if fp8 or item.quantized != "fp8")


def _rtx(
    name: str, capabilities: tuple[str, ...], memory: int, devices: str, *, fp32: bool = True, fp8: bool = True
) -> Target:
    precisions = _precisions(fp32=fp32, fp8=fp8)
    return Target(name, "tensorrt_rtx", capabilities, precisions, memory * GIB, 2 * GIB, True, devices)


def _on_device(
    name: str, library: str, capabilities: tuple[str, ...], memory: int, devices: str, *, fp8: bool = True
) -> Target:
    workspace = min(2, max(1, memory // 8)) * GIB
    return Target(name, library, capabilities, _precisions(fp8=fp8), memory * GIB, workspace, False, devices)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _on_device(
            "jetson-orin", "tensorrt", ("8.7",), 8, "Jetson Orin Nano, NX, AGX (JetPack 6, TensorRT 10.3)", fp8=False
        ),
        _on_device("jetson-thor", "tensorrt", ("11.0",), 64, "Jetson Thor (JetPack 7, TensorRT 10.13)"),
        _rtx("desktop-turing", ("7.5",), 6, "RTX 20; takes no fp32 matrix products", fp32=False, fp8=False),
        _rtx("desktop-ampere", ("8.6",), 6, "RTX 30, RTX A2000 to A6000", fp8=False),
        _rtx("desktop-ada", ("8.9",), 8, "RTX 40, RTX 4000 to 6000 Ada"),
        _rtx("desktop-blackwell", ("12.0",), 8, "RTX 50, RTX PRO Blackwell"),
        _rtx("desktop-rtx", ("8.6", "8.9", "12.0"), 6, "one plan for RTX 30, 40 and 50", fp8=False),
        _rtx("gb10", ("12.1",), 128, "GB10 (DGX Spark)"),
        _rtx("rtx-portable", ("8.0+",), 6, "one plan for Ampere and all later RTX GPUs", fp8=False),
        _on_device("this-gpu", "any", (), 0, "the GPU of this machine, a data-centre one too"),
    )
}


def find_target(name: str) -> Target:
    """The target of that name.

    Raises:
        EngineError: no such target.
    """
    if name not in TARGETS:
        raise EngineError("no such target", field="--target", expected=", ".join(TARGETS), got=name)
    return TARGETS[name]
