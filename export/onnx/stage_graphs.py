"""The encoder cut into stages, each a graph of its own for any grid, so that one stage at a time is in memory.

A stage computes what the whole graph computes, from the same weights file: `patches` (pixels to the residual
stream), `blocks.k` (residual stream to residual stream), and each merger (residual stream to an output).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.export.onnx.emitter import GraphEmitter, Value
from qwen3vl_edge.export.onnx.encoder_graph import EncoderGraph, EncoderWriter
from qwen3vl_edge.export.onnx.quantization import NOT_QUANTIZED, Quantization, is_scores
from qwen3vl_edge.export.onnx.weights import PATCH_EMBEDDING, StoredTensor

PATCHES = "patches"


def stages(spec: VisionSpec) -> Iterator[str]:
    """Stage names in the order they run; a merger follows the block that it reads."""
    yield PATCHES
    for layer in range(spec.depth):
        yield f"blocks.{layer}"
        if layer in spec.deepstack_visual_indexes:
            yield f"deepstack_merger_list.{spec.deepstack_visual_indexes.index(layer)}"
    yield "merger"


def stage_of(product: str) -> str:
    """The stage that holds a product: "blocks.3" for "blocks.3.attn.qkv", "merger" for "merger.linear_fc1"."""
    parts = product.split(".")
    return parts[0] if parts[0] == "merger" else ".".join(parts[:2])


def output_of(spec: VisionSpec, stage: str) -> str:
    """The encoder output of a merger: "embeds" or "deepstack.k"."""
    return "embeds" if stage == "merger" else f"deepstack.{spec.deepstack_mergers.index(int(stage.split('.')[1]))}"


def stage_graph(
    spec: VisionSpec,
    stage: str,
    precision: str,
    weights: dict[str, StoredTensor],
    location: str,
    quantization: Quantization = NOT_QUANTIZED,
    float32_layers: Collection[str] = (),
) -> EncoderGraph:
    """One stage as a graph of dynamic shape.

    Inputs: `hidden` float32 [patches, width] (the patches stage: as the dynamic-shape graph, without rotary),
    and for blocks `rotary_cos`, `rotary_sin` [patches per frame, head width].
    Outputs: `out`, then what each product of the stage reads, [rows, `product_width`], named after the product, in
    the order they run; and the largest magnitude that each layer gives, float32 by channel.
    """
    frame_input = "position_indices" if stage == PATCHES else "rotary_cos"
    emit = GraphEmitter(weights, location)
    writer = EncoderWriter(spec, precision, emit, None, None, quantization, frame_input, float32_layers)
    inputs: tuple[TensorSpec, ...] = (TensorSpec("hidden", "float32", ("patches", spec.hidden_size)),)
    kind = "float32"
    if stage == PATCHES:
        inputs, out = _patches(writer)
        rows: str = "patches"
    elif stage.startswith("blocks."):
        tables = tuple(
            TensorSpec(name, "float32", ("frame_patches", spec.head_dim)) for name in ("rotary_cos", "rotary_sin")
        )
        inputs += tables
        rotary = writer.rotary_tables(("rotary_cos", "rotary_sin"), [stage])[stage]
        out, rows = writer.block("hidden", stage, rotary), "patches"
    else:
        out, rows = writer.merger("hidden", stage, after_shuffle=stage != "merger"), "tokens"
        kind = "float16" if writer.half_in(f"{stage}.linear_fc2") else "float32"
    writer.emit.node("Identity", [out], "out")
    width = spec.out_hidden_size if rows == "tokens" else spec.hidden_size
    outputs = [TensorSpec("out", kind, (rows, width))]
    if stage != PATCHES:
        outputs += _observed(writer, spec)
    outputs += [_largest(writer, layer) for layer in writer.product_outputs]
    return EncoderGraph(writer.emit.model(stage, inputs, tuple(outputs)), inputs, tuple(outputs))


def _patches(writer: EncoderWriter) -> tuple[tuple[TensorSpec, ...], Value]:
    inputs = (
        TensorSpec("pixel_values", "float32", ("patches", writer.spec.patch_values)),
        TensorSpec("position_indices", "int64", ("frame_patches", 4)),
        TensorSpec("position_weights", "float32", ("frame_patches", 4)),
    )
    patches = writer.linear("pixel_values", PATCH_EMBEDDING, cast_input=True)
    positions = writer.interpolate("position_indices", "position_weights")
    return inputs, writer.add_positions(writer.to_float32(patches, "patch_embed", PATCH_EMBEDDING), positions)


def _observed(writer: EncoderWriter, spec: VisionSpec) -> list[TensorSpec]:
    outputs = []
    for product, value in writer.product_inputs.items():
        name, width = observed_name(product), product_width(spec, product)
        if is_scores(product):  # [frames, 2 heads, patches, head width]: a patch's queries, then its keys, are a row
            value = writer.emit.node("Transpose", [value], f"{name}.rows", perm=[0, 2, 1, 3])
            shape = writer.emit.shape("shape.queries_and_keys", -1, width)
            writer.emit.node("Reshape", [value, shape], name)
        else:
            writer.emit.node("Identity", [value], name)
        kind = "float16" if writer.half_in(product) else "float32"
        outputs.append(TensorSpec(name, kind, (f"{product}.rows", width)))
    return outputs


def _largest(writer: EncoderWriter, layer: str) -> TensorSpec:
    """An output with the largest magnitude in each of a layer's channels; of scores, in all of them."""
    emit, name, value = writer.emit, largest_name(layer), writer.product_outputs[layer]
    value = writer.to_float32(value, name, layer)
    axes = [] if is_scores(layer) else [emit.constant("axis.rows", np.array([0], dtype=np.int64))]
    top = emit.node("ReduceMax", [value, *axes], f"{name}.top", keepdims=0)
    low = emit.node("Neg", [emit.node("ReduceMin", [value, *axes], f"{name}.low", keepdims=0)], f"{name}.negative")
    emit.node("Reshape", [emit.node("Max", [top, low], f"{name}.both"), emit.shape("shape.channels", -1)], name)
    return TensorSpec(name, "float32", (f"{layer}.channels",))


def largest_name(layer: str) -> str:
    """The stage output with the largest magnitudes that a layer gives."""
    return f"{layer}.largest"


def observed_name(product: str) -> str:
    """The stage output that holds what a product reads."""
    return f"{product}.observed"


def product_width(spec: VisionSpec, product: str) -> int:
    """Channels that a linear reads; of scores, those of the queries and of the keys."""
    if "merger" in product:
        return spec.hidden_size * spec.merge_size**2
    if is_scores(product):
        return 2 * spec.hidden_size
    return spec.intermediate_size if product.endswith("mlp.linear_fc2") else spec.hidden_size
