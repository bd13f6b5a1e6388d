"""The encoder from patches to embeddings, as ONNX nodes; in the order of the model.

Follows `Qwen3VLVisionModel.forward` (transformers 5.23, modeling_qwen3_vl.py). Activations are 2-D
[patches, width] but inside attention, where they are [frames, heads, patches per frame, head width]:
attention does not cross frames. In fp16, weights and matrix products are float16; norms, softmax,
GELU and the residual stream stay float32, with the casts written in the graph; so do whole layers whose values
float16 cannot hold (`export/onnx/headroom.py`). Products that `export/onnx/quantization.py` names read int8 or
float8 through explicit Q/DQ pairs; everything else is unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.position_tables import patch_rows_columns, position_interpolation, rotary_table
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.export.onnx.activations import activation
from qwen3vl_edge.export.onnx.emitter import GraphEmitter, Value
from qwen3vl_edge.export.onnx.quantization import NOT_QUANTIZED, Quantization
from qwen3vl_edge.export.onnx.weights import IMAGE_EMBEDDING, PATCH_EMBEDDING, StoredTensor, mergers

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
EPSILON = 1e-6


@dataclass(frozen=True)
class EncoderGraph:
    """A graph with its inputs and outputs as the manifest records them."""

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def fixed_graph(
    spec: VisionSpec,
    grid: Grid,
    precision: str,
    weights: dict[str, StoredTensor],
    location: str,
    quantization: Quantization = NOT_QUANTIZED,
    float32_layers: Collection[str] = (),
) -> EncoderGraph:
    """`pixel_values` float32 [patches, patch values] of one bucket to `embeds` and `deepstack.k` [n, D]."""
    emit = GraphEmitter(weights, location)
    writer = EncoderWriter(
        spec, precision, emit, grid.t, grid.patches_per_frame, quantization, float32_layers=float32_layers
    )
    inputs = (TensorSpec("pixel_values", "float32", (grid.patches, spec.patch_values)),)
    patches = writer.linear("pixel_values", PATCH_EMBEDDING, cast_input=True)
    return writer.finish(f"encoder.{grid}", inputs, patches, writer.baked_positions(grid), writer.baked_rotary(grid))


def image_graph(
    spec: VisionSpec,
    preprocessing: Preprocessing,
    grid: Grid,
    precision: str,
    weights: dict[str, StoredTensor],
    location: str,
    quantization: Quantization = NOT_QUANTIZED,
    float32_layers: Collection[str] = (),
) -> EncoderGraph:
    """`pixels` uint8 [H, W, 3] RGB at the bucket's size; rescaling, normalising and patches in the graph.

    An image is one picture shown as both frames of its temporal patch, so the patch embedding's two
    frames are summed beforehand and half of its products are saved.
    """
    emit = GraphEmitter(weights, location)
    writer = EncoderWriter(
        spec, precision, emit, 1, grid.patches_per_frame, quantization, float32_layers=float32_layers
    )
    height, width = spec.geometry.pixels(grid)
    inputs = (TensorSpec("pixels", "uint8", (height, width, spec.in_channels)),)
    patches = writer.patchify(grid, preprocessing)
    patches = writer.linear(patches, IMAGE_EMBEDDING, bias=PATCH_EMBEDDING, cast_input=True)
    return writer.finish(f"image.{grid}", inputs, patches, writer.baked_positions(grid), writer.baked_rotary(grid))


def dynamic_graph(
    spec: VisionSpec,
    precision: str,
    weights: dict[str, StoredTensor],
    location: str,
    quantization: Quantization = NOT_QUANTIZED,
    float32_layers: Collection[str] = (),
) -> EncoderGraph:
    """One image or clip of any grid; the tables that a fixed graph bakes are inputs, per frame.

    Inputs: `pixel_values` [patches, patch values]; `position_indices` int64 and `position_weights`
    [frame_patches, 4]; `rotary_cos` and signed `rotary_sin` [frame_patches, head width]
    (`contract/bundle/position_tables.py`). patches is a multiple of frame_patches.
    """
    emit = GraphEmitter(weights, location)
    writer = EncoderWriter(spec, precision, emit, None, None, quantization, float32_layers=float32_layers)
    inputs = (
        TensorSpec("pixel_values", "float32", ("patches", spec.patch_values)),
        TensorSpec("position_indices", "int64", ("frame_patches", 4)),
        TensorSpec("position_weights", "float32", ("frame_patches", 4)),
        TensorSpec("rotary_cos", "float32", ("frame_patches", spec.head_dim)),
        TensorSpec("rotary_sin", "float32", ("frame_patches", spec.head_dim)),
    )
    patches = writer.linear("pixel_values", PATCH_EMBEDDING, cast_input=True)
    positions = writer.interpolate("position_indices", "position_weights")
    return writer.finish("encoder.dynamic", inputs, patches, positions, ("rotary_cos", "rotary_sin"))


class EncoderWriter:
    """Emits the modules of one graph; `frames` and `frame_patches` are None where the shape is dynamic.

    A dynamic graph reads the patches per frame from the rows of the input `frame_input`. After a module is
    emitted, `product_inputs` holds what each of its linears reads, and its scores (queries and keys,
    [frames, 2 heads, patches, head width]), as calibration observes it; and `product_outputs` what it gives.

    Args:
        float32_layers: of an fp16 graph, the layers that read, compute and give float32: linears by name, and by
            scores, such as "blocks.3.attn.scores", a block's attention between its two linears.
    """

    def __init__(
        self,
        spec: VisionSpec,
        precision: str,
        emit: GraphEmitter,
        frames: int | None,
        frame_patches: int | None,
        quantization: Quantization = NOT_QUANTIZED,
        frame_input: Value = "position_indices",
        float32_layers: Collection[str] = (),
    ) -> None:
        self.spec, self.emit, self.half = spec, emit, precision == "fp16"
        self.frames, self.frame_patches = frames, frame_patches
        self.quantization, self.frame_input = quantization, frame_input
        self.float32_layers = frozenset(float32_layers)
        # All outputs have one type, so that embeddings and levels can be sent as one.
        last = {f"{merger}.linear_fc2" for merger, _ in mergers(spec)}
        self.half_outputs = self.half and not last & self.float32_layers
        self.product_inputs: dict[str, Value] = {}
        self.product_outputs: dict[str, Value] = {}
        self._frame_shapes: dict[str, Value] = {}

    def finish(
        self,
        name: str,
        inputs: tuple[TensorSpec, ...],
        patches: Value,
        positions: Value,
        rotary: tuple[Value, Value],
    ) -> EncoderGraph:
        """Blocks and mergers over embedded patches, to the outputs."""
        hidden = self.add_positions(self.to_float32(patches, "patch_embed", PATCH_EMBEDDING), positions)
        tables = self.rotary_tables(rotary, [f"blocks.{layer}" for layer in range(self.spec.depth)])
        produced: dict[str, Value] = {}
        for layer in range(self.spec.depth):
            hidden = self.block(hidden, f"blocks.{layer}", tables[f"blocks.{layer}"])
            if layer in self.spec.deepstack_visual_indexes:
                merger = self.spec.deepstack_visual_indexes.index(layer)
                produced[f"deepstack.{self.spec.deepstack_mergers.index(merger)}"] = self.merger(
                    hidden, f"deepstack_merger_list.{merger}", after_shuffle=True
                )
        produced["embeds"] = self.merger(hidden, "merger", after_shuffle=False)
        for output, (source, _) in zip(self.spec.output_names, mergers(self.spec), strict=True):
            value = produced[output]
            if not self.half_outputs:
                value = self.to_float32(value, output, f"{source}.linear_fc2")
            self.emit.node("Identity", [value], output)
        rows: int | str = "tokens"
        if self.frames is not None and self.frame_patches is not None:
            rows = self.frames * self.frame_patches // self.spec.merge_size**2
        kind = "float16" if self.half_outputs else "float32"
        outputs = tuple(
            TensorSpec(output, kind, (rows, self.spec.out_hidden_size)) for output in self.spec.output_names
        )
        return EncoderGraph(self.emit.model(name, inputs, outputs), inputs, outputs)

    def block(self, hidden: Value, name: str, rotary: tuple[Value, Value]) -> Value:
        """Pre-norm transformer block: attention, then MLP, each added to the float32 residual stream."""
        qkv, proj, fc1, fc2 = (
            f"{name}.{part}" for part in ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
        )
        attended = self.attention(self.norm(hidden, f"{name}.norm1", qkv), f"{name}.attn", rotary)
        attended = self.to_float32(attended, f"{name}.attn", proj)
        hidden = self.emit.node("Add", [hidden, attended], f"{name}.attn.residual")
        inner = self.linear(self.norm(hidden, f"{name}.norm2", fc1), fc1)
        inner = self.gelu(inner, f"{name}.mlp.act", self.spec.hidden_act, fc1, fc2)
        outer = self.to_float32(self.linear(inner, fc2), f"{name}.mlp", fc2)
        return self.emit.node("Add", [hidden, outer], f"{name}.mlp.residual")

    def attention(self, hidden: Value, name: str, rotary: tuple[Value, Value]) -> Value:
        """Full attention among the patches of each frame; the scale is already in the query weights.

        Args:
            rotary: tables in the type that the scores have.
        """
        emit, heads, width = self.emit, self.spec.num_heads, self.spec.head_dim
        core = f"{name}.scores"
        qkv = self.converted(self.linear(hidden, f"{name}.qkv"), f"{name}.qkv", f"{name}.qkv", core)
        # Queries, keys and values as three times as many heads: what one Split gives is read as it is. A Squeeze after
        # it makes OpenVINO compute attention in the queries' place where a frame has as many patches as heads.
        qkv = emit.node("Reshape", [qkv, self.frame_shape("qkv", 3 * heads, width)], f"{name}.qkv.split_heads")
        # [frames, patches, 3 heads, width] -> [frames, 3 heads, patches, width]
        qkv = emit.node("Transpose", [qkv], f"{name}.qkv.transpose", perm=[0, 2, 1, 3])
        parts = emit.constant("qkv.parts", np.array([2 * heads, heads], dtype=np.int64))
        qk, v = emit.nodes("Split", [qkv, parts], f"{name}.split_v", [f"{name}.qk", f"{name}.v"], axis=1)
        qk = self.rotate(qk, name, rotary)
        self.product_inputs[core] = qk
        q, k = emit.nodes("Split", [qk], f"{name}.split_qk", [f"{name}.q", f"{name}.k"], axis=1, num_outputs=2)
        if core in self.quantization.input_scales:
            q, k = (self.quantized(x, core, f"{name}.{part}") for x, part in ((q, "q"), (k, "k")))
        k = emit.node("Transpose", [k], f"{name}.k.transpose", perm=[0, 1, 3, 2])
        self.product_outputs[core] = emit.node("MatMul", [q, k], core)
        scores = self.to_float32(core, core, core)
        weights = self.to_half(emit.node("Softmax", [scores], f"{name}.softmax", axis=-1), f"{name}.softmax", core)
        mixed = emit.node("MatMul", [weights, v], f"{name}.mix")
        mixed = emit.node("Transpose", [mixed], f"{name}.merge_heads", perm=[0, 2, 1, 3])
        mixed = emit.node("Reshape", [mixed, emit.shape("shape.hidden", -1, self.spec.hidden_size)], f"{name}.flat")
        return self.linear(self.converted(mixed, f"{name}.flat", core, f"{name}.proj"), f"{name}.proj")

    def rotate(self, qk: Value, name: str, rotary: tuple[Value, Value]) -> Value:
        """x·cos + swap_halves(x)·signed sin, for queries and keys at once."""
        emit = self.emit
        halves = [f"{name}.qk.first", f"{name}.qk.second"]
        first, second = emit.nodes("Split", [qk], f"{name}.qk.halves", halves, axis=-1, num_outputs=2)
        swapped = emit.node("Concat", [second, first], f"{name}.qk.swapped", axis=-1)
        straight = emit.node("Mul", [qk, rotary[0]], f"{name}.qk.cos")
        turned = emit.node("Mul", [swapped, rotary[1]], f"{name}.qk.sin")
        return emit.node("Add", [straight, turned], f"{name}.qk.rotated")

    def merger(self, hidden: Value, name: str, *, after_shuffle: bool) -> Value:
        """merge² concatenated patches through an MLP; DeepStack mergers normalize after the concatenation."""
        fc1, fc2 = f"{name}.linear_fc1", f"{name}.linear_fc2"
        side_by_side = self.emit.shape("shape.merged", -1, self.spec.hidden_size * self.spec.merge_size**2)
        if after_shuffle:
            hidden = self.emit.node("Reshape", [hidden, side_by_side], f"{name}.shuffle")
            hidden = self.norm(hidden, f"{name}.norm", fc1)
        else:
            hidden = self.norm(hidden, f"{name}.norm", fc1)
            hidden = self.emit.node("Reshape", [hidden, side_by_side], f"{name}.shuffle")
        inner = self.gelu(self.linear(hidden, fc1), f"{name}.act", "gelu", fc1, fc2)
        return self.linear(inner, fc2)

    def linear(self, x: Value, name: str, *, bias: str | None = None, cast_input: bool = False) -> Value:
        """x·Wᵀ + b with [out, in] weights as stored."""
        if cast_input:
            x = self.to_half(x, f"{name}.input", name)
        self.product_inputs[name], self.product_outputs[name] = x, name
        if name in self.quantization.input_scales:
            return self.quantized_linear(x, name, bias or name)
        inputs = [x, self.emit.weight(f"{name}.weight"), self.emit.weight(f"{bias or name}.bias")]
        return self.emit.node("Gemm", inputs, name, transB=1)

    def quantized_linear(self, x: Value, name: str, bias: str) -> Value:
        """x·W + b with both operands through Q/DQ: one scale for x, one per output channel for W [in, out].

        MatMul and Add, not Gemm: TensorRT takes no quantized bias, and ONNX Runtime makes an integer product
        of a Gemm only if it has one.
        """
        emit = self.emit
        x = self.quantized(x, name, f"{name}.input")
        stored = [emit.weight(f"{name}.weight"), emit.weight(f"{name}.weight_scale")]
        weight = emit.node("DequantizeLinear", stored, f"{name}.weight.dequantized", axis=1)
        product = emit.node("MatMul", [x, weight], f"{name}.product")
        return emit.node("Add", [product, emit.weight(f"{bias}.bias")], name)

    def quantized(self, x: Value, product: str, name: str) -> Value:
        """x through a Q/DQ pair with the scale of what a product reads."""
        emit, kind = self.emit, self.quantization
        half = np.float16 if self.half_in(product) else np.float32
        scale = emit.constant(f"{product}.input_scale", np.array(kind.input_scales[product], dtype=half))
        zero = emit.constant("zero_point", np.zeros((), dtype=kind.stored_dtype))
        x = emit.node("QuantizeLinear", [x, scale, zero], f"{name}.quantized")
        return emit.node("DequantizeLinear", [x, scale, zero], f"{name}.dequantized")

    def norm(self, x: Value, name: str, reader: str) -> Value:
        """LayerNorm in float32, its output in the type that the layer `reader` reads."""
        inputs = [x, self.emit.weight(f"{name}.weight"), self.emit.weight(f"{name}.bias")]
        return self.to_half(self.emit.node("LayerNormalization", inputs, name, axis=-1, epsilon=EPSILON), name, reader)

    def gelu(self, x: Value, name: str, kind: str, source: str, reader: str) -> Value:
        """The activation `kind`, in float32, of what layer `source` gives, in the type that layer `reader` reads."""
        x = self.to_float32(x, name, source)
        return self.to_half(activation(self.emit, x, name, kind), name, reader)

    def half_in(self, layer: str) -> bool:
        """Whether a layer reads and gives float16."""
        return self.half and layer not in self.float32_layers

    def to_float32(self, x: Value, name: str, source: str) -> Value:
        """What the layer `source` gives, as float32."""
        return self.emit.node("Cast", [x], f"{name}.to_float32", to=FLOAT) if self.half_in(source) else x

    def to_half(self, x: Value, name: str, reader: str) -> Value:
        """A float32 value in the type that the layer `reader` reads."""
        return self.emit.node("Cast", [x], f"{name}.to_float16", to=FLOAT16) if self.half_in(reader) else x

    def converted(self, x: Value, name: str, source: str, reader: str) -> Value:
        """What the layer `source` gives, in the type that the layer `reader` reads."""
        if self.half_in(source) == self.half_in(reader):
            return x
        return self.to_half(x, name, reader) if self.half_in(reader) else self.to_float32(x, name, source)

    def rotary_tables(self, rotary: tuple[Value, Value], blocks: Sequence[str]) -> dict[str, tuple[Value, Value]]:
        """cos and signed sin by block, each in the type of its scores; cast once for all."""
        half = [block for block in blocks if self.half_in(f"{block}.attn.scores")]
        cast = [self.to_half(table, f"rotary.{index}", f"{half[0]}.attn.scores")
                for index, table in enumerate(rotary)] if half else []  # fmt: skip
        return {block: (cast[0], cast[1]) if block in half else rotary for block in blocks}

    def frame_shape(self, name: str, *tail: int) -> Value:
        """Target shape [frames, patches per frame, *tail]; computed in the graph where it is dynamic."""
        if self.frames is not None and self.frame_patches is not None:
            return self.emit.shape(f"shape.{name}", self.frames, self.frame_patches, *tail)
        if name not in self._frame_shapes:
            rows = self.emit.node("Shape", [self.frame_input], f"shape.{name}.frame_patches", start=0, end=1)
            parts = [self.emit.shape(f"shape.{name}.head", -1), rows, self.emit.shape(f"shape.{name}.tail", *tail)]
            self._frame_shapes[name] = self.emit.node("Concat", parts, f"shape.{name}", axis=0)
        return self._frame_shapes[name]

    def add_positions(self, patches: Value, positions: Value) -> Value:
        """Learned positions, the same for each frame."""
        width = self.spec.hidden_size
        framed = self.emit.node("Reshape", [patches, self.frame_shape("frames", width)], "pos_embed.frames")
        added = self.emit.node("Add", [framed, positions], "pos_embed.add")
        return self.emit.node("Reshape", [added, self.emit.shape("shape.hidden", -1, width)], "pos_embed.flat")

    def interpolate(self, indices: Value, weights: Value) -> Value:
        """The learned table at a frame's patches: weighted sum of 4 of its rows each, float32 [P, width].

        With constant inputs the runtime folds this at load, so a bucket stores 4 indices and weights a
        patch and not a row of the table.
        """
        rows = self.emit.node("Gather", [self.emit.weight("pos_embed.weight"), indices], "pos_embed.rows", axis=0)
        last = self.emit.constant("axis.last", np.array([2], dtype=np.int64))
        scaled = self.emit.node("Mul", [rows, self.emit.node("Unsqueeze", [weights, last], "pos_embed.weights")],
                                "pos_embed.scaled")  # fmt: skip
        taps = self.emit.constant("axis.taps", np.array([1], dtype=np.int64))
        return self.emit.node("ReduceSum", [scaled, taps], "pos_embed.interpolated", keepdims=0)

    def baked_positions(self, grid: Grid) -> Value:
        spec = self.spec
        indices, weights = position_interpolation(grid, spec.merge_size, spec.num_position_embeddings)
        return self.interpolate(
            self.emit.constant("position_indices", indices), self.emit.constant("position_weights", weights)
        )

    def baked_rotary(self, grid: Grid) -> tuple[Value, Value]:
        """cos and signed sin [P, head width] from one small table per axis, folded at load."""
        emit, spec = self.emit, self.spec
        angles = rotary_table(max(grid.h, grid.w), spec.head_dim, spec.rope_theta)
        place = patch_rows_columns(grid, spec.merge_size)
        where = [emit.constant(f"rotary.{axis}", place[:, index]) for index, axis in enumerate(("rows", "columns"))]
        tables = []
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            source = emit.constant(f"rotary.{name}.table", table)
            axes = [emit.node("Gather", [source, ids], f"rotary.{name}.{ids}", axis=0) for ids in where]
            tables.append(emit.node("Concat", axes, f"rotary.{name}.half", axis=-1))
        negative = emit.node("Neg", [tables[1]], "rotary.sin.negative")
        cos = emit.node("Concat", [tables[0], tables[0]], "rotary.cos", axis=-1)
        return cos, emit.node("Concat", [negative, tables[1]], "rotary.sin", axis=-1)

    def patchify(self, grid: Grid, preprocessing: Preprocessing) -> Value:
        """uint8 [H, W, 3] to normalised float32 [patches, 3·patch²] in merge-block order."""
        emit, spec = self.emit, self.spec
        merge, patch, channels = spec.merge_size, spec.patch_size, spec.in_channels
        # Rescaling folded into mean and std, as transformers' `rescale_and_normalize` does.
        scale = np.float32(1 / preprocessing.rescale_factor)
        mean = emit.constant("pixels.mean", np.array(preprocessing.image_mean, np.float32) * scale)
        std = emit.constant("pixels.std", np.array(preprocessing.image_std, np.float32) * scale)
        x = emit.node("Cast", ["pixels"], "pixels.to_float32", to=FLOAT)
        x = emit.node("Div", [emit.node("Sub", [x, mean], "pixels.centred"), std], "pixels.normalised")
        blocks = emit.shape("shape.blocks", grid.h // merge, merge, patch, grid.w // merge, merge, patch, channels)
        x = emit.node("Reshape", [x, blocks], "pixels.blocks")
        # block row, block column, row in block, column in block, channel, y, x
        x = emit.node("Transpose", [x], "pixels.patches", perm=[0, 3, 1, 4, 6, 2, 5])
        return emit.node("Reshape", [x, emit.shape("shape.patches", -1, channels * patch**2)], "pixels.flat")
