"""The protocol of an encoder backend: the patches of a picture in, its embeddings out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.packing import FLOAT16_MAX, FROM_FP32, HALF_ALONE


@dataclass(frozen=True)
class Embeddings:
    """The encoder's outputs for one picture or clip.

    Attributes:
        embeds: [n, D] merged embeddings, n = t·h·w / merge².
        deepstack: one [n, D] per DeepStack level, in the order of their layers.
    """

    embeds: NDArray[Any]
    deepstack: tuple[NDArray[Any], ...]

    def to_fp16(self) -> Embeddings:
        """The same in float16, as it is sent.

        Raises:
            InputError: a value that float16 cannot hold, which would reach the server as infinity.
        """
        return Embeddings(_fp16("embeds", self.embeds), tuple(_fp16("deepstack", level) for level in self.deepstack))

    def for_wire(self, wire_dtype: str) -> Embeddings:
        """What a wire dtype is made from: float16, except where it, or the values, need float32.

        Raises:
            InputError: a value that the dtype cannot hold, or one that is not finite.
        """
        if wire_dtype in FROM_FP32:
            return self
        return self.to_fp16() if wire_dtype in HALF_ALONE else self.to_fp16_if_it_fits()

    def to_fp16_if_it_fits(self) -> Embeddings:
        """The same in float16 where that holds every value, else unchanged.

        Raises:
            InputError: a value that is not finite.
        """
        try:
            return self.to_fp16()
        except InputError:
            if not all(np.isfinite(array).all() for array in (self.embeds, *self.deepstack)):
                raise
            return self


def _fp16(name: str, array: NDArray[Any]) -> NDArray[np.float16]:
    if array.dtype == np.float16 and np.isfinite(array).all():
        return array
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= FLOAT16_MAX:  # written so that NaN fails too
        raise InputError(
            f"encoder output {name} does not fit float16",
            field=name,
            expected="at most 65504",
            got=largest,
            remedy="Choose another wire dtype: auto, fp32, bf16, int8 or int4.",
        )
    return array.astype(np.float16)


@dataclass(frozen=True)
class ServedGrids:
    """Which grids a backend takes.

    Attributes:
        buckets: grids that have a graph of their own.
        dynamic: whether it takes any other grid too.
    """

    buckets: tuple[Grid, ...]
    dynamic: bool


def bundle_serves(bundle: Bundle, precision: str | None) -> ServedGrids:
    """Which grids the graphs of a bundle serve."""
    return ServedGrids(tuple(bundle.manifest.buckets(precision)), bundle.manifest.has_dynamic(precision))


class EncoderBackend(Protocol):
    """A loaded encoder.

    Attributes:
        name: of the backend.
        precision: that it computes in.
    """

    name: str
    precision: str

    @property
    def serves(self) -> ServedGrids:
        """Which grids `run` takes; pictures are resized accordingly."""
        ...

    def run(self, grid: Grid, pixel_values: NDArray[np.float32]) -> Embeddings:
        """Encode one picture or clip.

        Args:
            grid: its grid.
            pixel_values: float32 [t·h·w, channels·temporal·patch²] in the HF processor's layout.

        Returns:
            Embeddings in the precision that the backend computes in.

        Raises:
            BucketError: the backend does not serve the grid.
        """
        ...

    def close(self) -> None:
        """Free the backend's memory; it cannot be used afterwards."""
        ...


@runtime_checkable
class PixelBackend(Protocol):
    """A backend that also runs the graphs which take an image's uint8 pixels."""

    def takes_pixels(self, grid: Grid) -> bool:
        """Whether there is such a graph for this grid."""
        ...

    def run_pixels(self, grid: Grid, pixels: NDArray[np.uint8]) -> Embeddings:
        """Encode one image.

        Args:
            grid: its grid.
            pixels: uint8 [H, W, 3] RGB at the grid's size.

        Raises:
            BucketError: there is no such graph for the grid.
        """
        ...


def run_encoder(backend: EncoderBackend, item: EncoderInput) -> Embeddings:
    """Encode one picture or clip, from its uint8 pixels where it has them.

    Raises:
        BucketError: the backend does not serve the grid.
    """
    if item.pixels is None:
        return backend.run(item.grid, item.pixel_values)
    assert isinstance(backend, PixelBackend)
    return backend.run_pixels(item.grid, item.pixels)


# The dtype of the `pytorch` backend that follows from the other options.
AUTO_DTYPE = "auto"
# The provider that follows from the backend's choice, and is the CPU's where ONNX Runtime was named.
AUTO_PROVIDER = "auto"


@dataclass(frozen=True)
class BackendOptions:
    """How to load a backend.

    Attributes:
        precision: which set of the bundle; None for the first.
        threads: CPU threads, 0 for OMP_NUM_THREADS where that is set, else the library's choice.
        model: checkpoint folder, needed by the `pytorch` backend alone.
        device: of the `pytorch` backend: "cpu", "cuda" or "cuda:N".
        dtype: of the `pytorch` backend: "fp32", "fp16" or "bf16"; "auto" for `precision`, and where that is None for
            fp32 on the CPU and the checkpoint's own dtype on a GPU.
        provider: ONNX Runtime execution provider, such as "cpu" or "cuda"; "auto" is the CPU's, and lets
            `--backend auto` choose another.
        target: which TensorRT engine of the bundle, for the TensorRT backends; None for the first that fits the GPU.
        self_test: `open_edge` lets each graph prove itself on the bundle's golden pairs before it serves.
    """

    precision: str | None = None
    threads: int = 0
    model: Path | None = None
    provider: str = AUTO_PROVIDER
    target: str | None = None
    self_test: bool = True
    device: str = "cpu"
    dtype: str = AUTO_DTYPE
