"""Making a dump on a device, and reading it back as samples and layers on a workstation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import MANIFEST_NAME, Manifest
from qwen3vl_edge.contract.bundle.open import Bundle, sha256_of
from qwen3vl_edge.contract.bundle.patch_values import patch_values
from qwen3vl_edge.contract.errors import InputError, ModelMismatchError
from qwen3vl_edge.contract.machine.environment import environment
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings, run_encoder
from qwen3vl_edge.tools.parity.dump.dump_format import Dump, DumpMeta, DumpWriter, SampleRecord, write_dump
from qwen3vl_edge.tools.parity.dump.identity import set_identity
from qwen3vl_edge.tools.parity.encoder import named_outputs
from qwen3vl_edge.tools.parity.layers.names import LayerSource, stream_layers
from qwen3vl_edge.tools.parity.pixels import to_rgb
from qwen3vl_edge.tools.parity.samples import UINT8, Case, Sample, edge_cases


def dump_edge(
    edge: Edge,
    pictures: dict[str, Any],
    out: Path,
    layers: LayerSource | None = None,
    progress: Callable[[str], None] = lambda bucket: None,
) -> DumpMeta:
    """Run the edge's encoder on every picture at every graph (`edge_cases`) and write its outputs.

    Args:
        layers: source of intermediate outputs; None omits them.

    Raises:
        InputError: the file cannot be written.
    """
    written: list[DumpMeta] = []

    def fill(writer: DumpWriter) -> None:
        records = tuple(
            _add_sample(writer, index, case, edge, layers)
            for index, case in enumerate(edge_cases(edge, pictures, progress))
        )
        written.append(_meta(edge, records))
        writer.add_meta(written[0])

    write_dump(out, fill)
    return written[0]


def _add_sample(writer: DumpWriter, index: int, case: Case, edge: Edge, layers: LayerSource | None) -> SampleRecord:
    manifest = edge.bundle.manifest
    _add_pixels(writer, index, case, manifest)
    embeddings = run_encoder(edge.encoder, case.input)
    for name, array in named_outputs(manifest.vision.output_names, embeddings).items():
        writer.add(f"{index}/{name}", array)
    names = () if layers is None else tuple(filter(layers.offers, stream_layers(manifest.vision)))
    if layers is not None:
        for name, array in layers.run(case, names).items():
            writer.add(f"{index}/layer/{name}", array)
    return SampleRecord(str(case.grid), case.graph, case.picture, names)


def _add_pixels(writer: DumpWriter, index: int, case: Case, manifest: Manifest) -> None:
    """uint8 pixels, a quarter of the bytes, where they convert to bit-identical values."""
    rgb = to_rgb(case.input.pixel_values, case.grid, manifest.vision, manifest.preprocessing)
    if np.array_equal(patch_values(rgb, case.grid, manifest.vision, manifest.preprocessing), case.input.pixel_values):
        writer.add(f"{index}/pixels", rgb)
    else:
        writer.add(f"{index}/pixel_values", case.input.pixel_values)


def _meta(edge: Edge, records: tuple[SampleRecord, ...]) -> DumpMeta:
    manifest = edge.bundle.manifest
    facts = {key: value for key, value in environment().items() if value is not None}
    return DumpMeta(
        model=manifest.model.id,
        model_hash=manifest.model.model_hash,
        set_identity=set_identity(manifest, edge.encoder.precision),
        manifest_sha256=sha256_of(edge.bundle.path / MANIFEST_NAME),
        backend=edge.encoder.name,
        precision=edge.encoder.precision,
        outputs=manifest.vision.output_names,
        samples=records,
        environment={key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()},
    )


def check_dump(dump: Dump, bundle: Bundle) -> None:
    """Check that a dump comes from this bundle.

    Raises:
        ModelMismatchError: it was made with another model or another export of it.
        BundleError: the bundle has no set of its precision.
        InputError: its outputs are not this model's.
    """
    manifest = bundle.manifest
    _check_hash(dump, bundle, "model", manifest.model.model_hash, dump.meta.model_hash)
    _check_hash(dump, bundle, "bundle", set_identity(manifest, dump.meta.precision), dump.meta.set_identity)
    if dump.meta.outputs != manifest.vision.output_names or not dump.meta.samples:
        raise InputError(f"dump {dump.path} has other outputs or no samples", field="--dump")


def _check_hash(dump: Dump, bundle: Bundle, what: str, ours: str, its: str) -> None:
    if ours != its:
        raise ModelMismatchError(
            f"dump {dump.path} was made with another {what} than {bundle.path}",
            field="--dump",
            expected=f"hash {ours[:12]}…",
            got=f"{its[:12]}…",
            remedy="Give the bundle that the device runs, or dump again on the device.",
        )


def dump_samples(dump: Dump, manifest: Manifest) -> Iterator[Sample]:
    """The device's inputs and outputs, in the order of the dump.

    Raises:
        InputError: an array is missing or of another shape.
    """
    for index, record in dump:
        case = _case(dump, index, record, manifest)
        rows = case.grid.tokens(manifest.vision.merge_size)
        outputs = [dump.array(index, name) for name in dump.meta.outputs]
        for name, array in zip(dump.meta.outputs, outputs, strict=True):
            _check_shape(dump, f"{index}/{name}", array, (rows, manifest.vision.out_hidden_size))
        yield Sample(case, Embeddings(outputs[0], tuple(outputs[1:])))


def _case(dump: Dump, index: int, record: SampleRecord, manifest: Manifest) -> Case:
    grid, vision = Grid.parse(record.bucket), manifest.vision
    pixels = None
    if dump.has(index, "pixels"):
        height, width = vision.geometry.pixels(grid)
        frames = dump.array(index, "pixels")
        _check_shape(dump, f"{index}/pixels", frames, (vision.geometry.frames(grid), height, width, vision.in_channels))
        values = patch_values(frames, grid, vision, manifest.preprocessing)
        pixels = frames[0] if record.graph == UINT8 else None
    else:
        values = dump.array(index, "pixel_values")
        _check_shape(dump, f"{index}/pixel_values", values, (grid.patches, vision.patch_values))
    return Case(record.picture, record.graph, EncoderInput(grid, values.astype(np.float32, copy=False), pixels))


def _check_shape(dump: Dump, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind not in "fu":
        got = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"dump {dump.path}: {name} has another shape or dtype", expected=list(shape), got=got)


class DumpLayers:
    """The layers of a dump; a case is looked up by its graph and picture."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._index = {(record.bucket, record.graph, record.picture): index for index, record in dump}
        self._common = set.intersection(*(set(record.layers) for _, record in dump))
        self.label = f"dump of {dump.meta.backend}, {dump.meta.precision}"

    def offers(self, layer: str) -> bool:
        return layer in self._common or layer in self._dump.meta.outputs

    def serves(self, case: Case) -> bool:
        return _key(case) in self._index

    def run(self, case: Case, layers: Sequence[str]) -> dict[str, NDArray[Any]]:
        index = self._index[_key(case)]
        outputs = self._dump.meta.outputs
        return {name: self._dump.array(index, name if name in outputs else f"layer/{name}") for name in layers}


def _key(case: Case) -> tuple[str, str, str]:
    return str(case.grid), case.graph, case.picture
