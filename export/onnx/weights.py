"""Write one weights file per precision: every tensor of the encoder once, for all graphs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.checkpoint_tensor import FLOAT_DTYPES, CheckpointTensor, to_float32
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.wire.packing import FLOAT16_MAX

_ALIGNMENT = 4096  # a page, so that each tensor can be memory mapped by itself


PATCH_EMBEDDING = "patch_embed.proj"
IMAGE_EMBEDDING = "patch_embed.image"  # the same with its two frames summed, for the uint8 graphs


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor in the weights file: byte offset and length; dtype is numpy's."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    length: int


def write_weights(
    checkpoint: Checkpoint,
    spec: VisionSpec,
    precision: str,
    path: Path,
    progress: Callable[[float], None] = lambda done: None,
    float32_layers: Collection[str] = (),
) -> dict[str, StoredTensor]:
    """Write the weights of one precision, one tensor in memory at a time.

    Matrices keep PyTorch's [out, in] layout (the graphs use Gemm with transB). Folded in here:
    the attention scale into the query rows of qkv, the patch convolution flattened to a matrix, and
    for the uint8 graphs the same matrix with its two equal frames summed.

    Raises:
        CheckpointError: a tensor does not fit float16.
    """
    stored: dict[str, StoredTensor] = {}
    names = list(expected_shapes(spec))
    with path.open("wb") as file:
        for index, name in enumerate(names):
            for part, array in _folded(checkpoint, spec, name):
                stored[part] = append_tensor(file, part, array, stored_dtype(part, precision, float32_layers))
            progress((index + 1) / len(names))
    return stored


def check_tensors(checkpoint: Checkpoint, spec: VisionSpec) -> None:
    """Compare the checkpoint's tensors with the config; reads only the shards' headers.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or of a dtype not read here.
    """
    shapes, tensors = expected_shapes(spec), checkpoint.visual_tensors
    different = sorted(set(shapes) ^ set(tensors))
    if different:
        raise CheckpointError(
            "the encoder's tensors do not match its config",
            field=different[0],
            expected=f"{len(shapes)} tensors",
            got=f"{len(tensors)}, first difference {different[0]}",
        )
    for name, shape in shapes.items():
        entry = tensors[name].entry
        if tuple(entry.shape) != shape:
            raise CheckpointError(
                f"tensor visual.{name} has another shape", field=name, expected=list(shape), got=list(entry.shape)
            )
        if entry.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"tensor visual.{name} has an unsupported dtype",
                field=name,
                expected="F32, F16 or BF16",
                got=entry.dtype,
            )


def expected_shapes(spec: VisionSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of `Qwen3VLVisionModel` by name, with its shape."""
    width, inner, merged = spec.hidden_size, spec.intermediate_size, spec.hidden_size * spec.merge_size**2
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (
            width,
            spec.in_channels,
            spec.temporal_patch_size,
            spec.patch_size,
            spec.patch_size,
        ),
        "patch_embed.proj.bias": (width,),
        "pos_embed.weight": (spec.num_position_embeddings, width),
    }
    for layer in range(spec.depth):
        block = f"blocks.{layer}"
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.linear_fc1", inner, width) | _linear(f"{block}.mlp.linear_fc2", width, inner)
    for merger, norm in mergers(spec):
        shapes |= _norm(f"{merger}.norm", norm)
        shapes |= _linear(f"{merger}.linear_fc1", merged, merged)
        shapes |= _linear(f"{merger}.linear_fc2", spec.out_hidden_size, merged)
    return shapes


def mergers(spec: VisionSpec) -> Iterator[tuple[str, int]]:
    """Name and norm width of each output's merger: the first norms patches, the DeepStack ones norm merged blocks."""
    yield "merger", spec.hidden_size
    for merger in spec.deepstack_mergers:
        yield f"deepstack_merger_list.{merger}", spec.hidden_size * spec.merge_size**2


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _folded(checkpoint: Checkpoint, spec: VisionSpec, name: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    array = read_float32(checkpoint.visual_tensors[name])
    if name == f"{PATCH_EMBEDDING}.weight":
        yield name, array.reshape(spec.hidden_size, -1)
        yield f"{IMAGE_EMBEDDING}.weight", array.sum(axis=2).reshape(spec.hidden_size, -1)
        return
    if ".attn.qkv." in name:
        array = array.copy()
        array[: spec.hidden_size] *= np.float32(spec.head_dim**-0.5)
    yield name, array


def read_float32(tensor: CheckpointTensor) -> NDArray[np.float32]:
    """A checkpoint tensor as float32: widened from F16 or BF16, or a view of the file's memory map.

    `check_tensors` has refused other dtypes.
    """
    return to_float32(tensor.map(), tensor.entry.dtype).reshape(tensor.entry.shape)


def stored_dtype(name: str, precision: str, float32_layers: Collection[str] = ()) -> np.dtype[Any]:
    """The stored dtype of a tensor that is not quantized, or of a quantized one's scales.

    Args:
        float32_layers: of an fp16 set, the layers that stay float32 (`export/onnx/headroom.py`).
    """
    # Norms and positions act on the fp32 residual stream in every precision.
    exact = precision == "fp32" or ".norm" in name or name == "pos_embed.weight"
    exact = exact or name.rpartition(".")[0] in float32_layers
    return np.dtype("<f4" if exact else "<f2")


def stored_in_graphs(graphs: Iterable[Path]) -> dict[str, StoredTensor]:
    """Locations of the tensors of a weights file, read from its graphs.

    No graph names all: the patch graphs and the uint8 graphs embed patches with different matrices.
    """
    import onnx

    stored: dict[str, StoredTensor] = {}
    for path in graphs:
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            if tensor.external_data:
                place = {entry.key: entry.value for entry in tensor.external_data}
                dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
                shape = tuple(tensor.dims)
                stored[tensor.name] = StoredTensor(dtype, shape, int(place["offset"]), int(place["length"]))
    return stored


def append_tensor(file: BinaryIO, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> StoredTensor:
    """Write one tensor at an aligned offset.

    Raises:
        CheckpointError: it does not fit float16.
    """
    if dtype == np.float16:
        largest = float(np.abs(array).max())
        if not largest <= FLOAT16_MAX:
            raise CheckpointError(
                f"tensor visual.{name} does not fit float16",
                field=name,
                expected="at most 65504",
                got=largest,
                remedy="Export with --precision fp32.",
            )
    # Vectors share pages: aligning each of a thousand biases to a page would cost megabytes.
    alignment = _ALIGNMENT if array.ndim > 1 else 64
    file.write(bytes(-file.tell() % alignment))
    offset = file.tell()
    data = np.ascontiguousarray(array, dtype=dtype)
    file.write(data.reshape(-1).view(np.uint8).data)
    return StoredTensor(dtype, array.shape, offset, data.nbytes)
