"""Two more edits of the CUDA provider's copy, each of which has one kernel where the file has several.

Rotation: `com.microsoft.RotaryEmbedding` in place of a split, a concatenation, two products and a sum, of values of the
same type. GELU: on halves in place of float32 between two casts; its kernel rounds to halves within.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"
FIRST_POSITION = "fewer_kernels.first_position"
ROWS_SHAPE = "fewer_kernels.rows"


def fuse_rotation(model: onnx.ModelProto, heads: int) -> int:
    """Rotate queries and keys by one node each block, after `fuse_attention`.

    Args:
        heads: of each attention.

    Returns:
        The number of rotations that were fused.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    dropped: set[str] = set()
    tables: dict[str, str] = {}
    for node in model.graph.node:
        parts = _rotation(node, made_by)
        if parts is None:
            nodes.append(node)
            continue
        source, cos, sin, inner = parts
        for table, name, start in ((cos, f"{cos}.half", 0), (sin, f"{sin}.half", 1)):
            if table not in tables:
                nodes += _half_table(model.graph, table, name, start)
                tables[table] = name
        rows = f"{node.output[0]}.rows"
        nodes.append(helper.make_node("Reshape", [source, ROWS_SHAPE], [rows], name=rows))
        inputs = [rows, FIRST_POSITION, tables[cos], tables[sin]]
        attributes = {"domain": CONTRIB, "num_heads": 2 * heads, "interleaved": 0}
        nodes.append(helper.make_node("RotaryEmbedding", inputs, list(node.output), name=node.name, **attributes))
        dropped |= inner
    if not tables:
        return 0
    for name, values in ((FIRST_POSITION, [0]), (ROWS_SHAPE, [0, 0, -1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    kept = [node for node in nodes if node.output[0] not in dropped]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return sum(node.op_type == "RotaryEmbedding" for node in kept)


def halve_gelu(model: onnx.ModelProto, heads: int) -> int:
    """Compute GELU on halves where it stands between casts from and to them.

    Returns:
        The number of GELUs that were changed.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    dropped: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "Gelu":
            continue
        before, after = made_by.get(node.input[0]), readers.get(node.output[0], [])
        if before is None or before.op_type != "Cast" or [item.op_type for item in after] != ["Cast"]:
            continue
        dropped |= {before.output[0], after[0].output[0]}
        node.input[0], node.output[0] = before.input[0], after[0].output[0]
    kept = [node for node in model.graph.node if node.op_type != "Cast" or node.output[0] not in dropped]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return len(dropped) // 2


def _rotation(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> tuple[str, str, str, set[str]] | None:
    """What an Add rotates, its tables of cosines and signed sines, and the outputs of the nodes within."""
    if node.op_type != "Add":
        return None
    straight, turned = (made_by.get(name) for name in node.input)
    if straight is None or turned is None or straight.op_type != "Mul" or turned.op_type != "Mul":
        return None
    swapped = made_by.get(turned.input[0])
    if swapped is None or swapped.op_type != "Concat" or len(swapped.input) != 2:
        return None
    halves = made_by.get(swapped.input[0])
    if halves is None or halves.op_type != "Split" or list(halves.output) != list(reversed(swapped.input)):
        return None
    if halves.input[0] != straight.input[0]:
        return None
    inner = {item.output[0] for item in (straight, turned, swapped, halves)}
    return straight.input[0], straight.input[1], turned.input[1], inner


def _half_table(graph: onnx.GraphProto, table: str, name: str, half: int) -> list[onnx.NodeProto]:
    """[patches, 1, width] to its first or second half of columns, [patches, width / 2]."""
    parts = [f"{name}.columns", f"{name}.axis"]
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), parts[1]))
    first, second = f"{name}.0", f"{name}.1"
    return [
        helper.make_node("Squeeze", [table, parts[1]], [parts[0]], name=parts[0]),
        helper.make_node("Split", [parts[0]], [first, second], name=f"{name}.split", axis=1, num_outputs=2),
        helper.make_node("Identity", [(first, second)[half]], [name], name=name),
    ]
