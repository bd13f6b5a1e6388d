"""A backend that serves a graph only after the graph has proven itself on this machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.machine.gpu import find_gpu
from qwen3vl_edge.contract.machine.processor import processor
from qwen3vl_edge.edge_runtime.backends.proof_store import ProofStore, machine_store
from qwen3vl_edge.edge_runtime.backends.registry import library_versions, load_backend
from qwen3vl_edge.edge_runtime.backends.self_test import SelfTest
from qwen3vl_edge.edge_runtime.encoder.protocol import (
    AUTO_PROVIDER,
    BackendOptions,
    Embeddings,
    EncoderBackend,
    PixelBackend,
    ServedGrids,
)

CPU_BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")


class ProvenBackend:
    """Runs a loaded backend, each of its graphs after its self-test."""

    def __init__(self, inner: EncoderBackend, test: SelfTest) -> None:
        self._inner, self.self_test = inner, test
        self.name, self.precision = inner.name, inner.precision

    @property
    def serves(self) -> ServedGrids:
        return self._inner.serves

    @property
    def edits(self) -> tuple[str, ...]:
        """Edits of the graphs' copies that the backend loads."""
        edits: tuple[str, ...] = getattr(self._inner, "edits", ())
        return edits

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory, as the backend reports them."""
        return int(getattr(self._inner, "device_bytes", 0))

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        self.self_test.prove(grid)
        return self._inner.run(grid, pixel_values)

    def close(self) -> None:
        self._inner.close()


class ProvenPixelBackend(ProvenBackend):
    """The same over a backend that also runs uint8 graphs."""

    def __init__(self, inner: EncoderBackend, pixels: PixelBackend, test: SelfTest) -> None:
        super().__init__(inner, test)
        self._pixels = pixels

    def takes_pixels(self, grid: Grid) -> bool:
        return self._pixels.takes_pixels(grid)

    def run_pixels(self, grid: Grid, pixels: NDArray[np.uint8]) -> Embeddings:
        if self.takes_pixels(grid):
            self.self_test.prove(grid, pixels=True)
        return self._pixels.run_pixels(grid, pixels)


def proven(
    encoder: EncoderBackend, bundle: Bundle, backend: str, options: BackendOptions, store: ProofStore | None = None
) -> ProvenBackend:
    """A loaded backend that proves its graphs as they are first used.

    Args:
        backend: its name, a key of BACKENDS.
        store: of passed tests; this user's by default.
    """
    provider = "cpu" if options.provider == AUTO_PROVIDER else options.provider
    identity = [provider, *library_versions(backend), *processor(), *getattr(encoder, "edits", ())]
    if encoder.name not in CPU_BACKENDS:
        gpu = find_gpu(_gpu_index(encoder.name))
        identity += [] if gpu is None else [str(gpu), gpu.driver]

    def find_passing(passes: Callable[[EncoderBackend], bool]) -> str | None:
        return passing_backend(bundle, encoder, options, passes)

    test = SelfTest(bundle, encoder, identity, store or machine_store(), find_passing)
    if isinstance(encoder, PixelBackend):
        return ProvenPixelBackend(encoder, encoder, test)
    return ProvenBackend(encoder, test)


def _gpu_index(name: str) -> int:
    """Of the GPU that a backend of that name runs on: 1 of "pytorch-cuda:1"; 0 where it has no number."""
    number = name.rpartition("cuda:")[2]
    return int(number) if "cuda:" in name and number.isdecimal() else 0


def passing_backend(
    bundle: Bundle, failed: EncoderBackend, options: BackendOptions, passes: Callable[[EncoderBackend], bool]
) -> str | None:
    """The first backend of this machine's CPU, other than the one that failed, that passes; None if none does."""
    precision = bundle.manifest.set_for(failed.precision).precision
    for name in CPU_BACKENDS:
        if name == failed.name:
            continue
        try:
            other = load_backend(name, bundle, BackendOptions(precision, options.threads))
        except ContractError:  # not installed, or not for this CPU
            continue
        try:
            if passes(other):
                return name
        except ContractError:
            continue
        finally:
            other.close()
    return None


def untested(encoder: EncoderBackend, grid: Grid, *, pixels: bool = False) -> str | None:
    """Why a picture's embeddings come from a graph that has not proven itself; None where it has."""
    if not isinstance(encoder, ProvenBackend):
        return "off"
    return None if encoder.self_test.covers(grid, pixels=pixels) else "not self-tested: the bundle has no golden pairs"
