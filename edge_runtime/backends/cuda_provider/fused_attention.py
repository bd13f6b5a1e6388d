"""Attention as one operation, in a copy of a graph that ONNX Runtime's CUDA provider loads in the file's place.

The file has the chain MatMul, Softmax, MatMul, which TensorRT and OpenVINO fuse and the CUDA provider runs node by
node, with all scores in memory: more than twice the encoder's time at 4,096 patches. `com.microsoft.MultiHeadAttention`
(onnxruntime, docs/ContribOperators.md) runs it as flash attention: products of halves, sums and softmax in float32. It
takes [frames, patches, heads · width], so the transposes around the chain go too, and rotation runs in that order:
where the file has [frames, heads, patches, width], the copy has [frames, patches, heads, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONTRIB = "com.microsoft"
HEADS_LAST = [0, 2, 1, 3]  # exchanges heads and patches
KEYS_TURNED = [0, 1, 3, 2]
ROWS_SHAPE = "fused_attention.rows"
# What may stand between the products of a block and its attention, and how each reads an axis.
ELEMENTWISE = ("Add", "Mul", "QuantizeLinear", "DequantizeLinear")
ALONG_AN_AXIS = ("Split", "Concat")


@dataclass(frozen=True)
class _Chain:
    """The nodes of one block's attention: scores to the mixed values with heads merged."""

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, str, str]
    output: str


def fuse_attention(model: onnx.ModelProto, heads: int) -> int:
    """Edit the graph in place.

    Args:
        heads: of each attention.

    Returns:
        The number of attentions that were fused.
    """
    graph = _Graph(model.graph)
    chains = [chain for node in model.graph.node if (chain := graph.chain(node)) is not None]
    if not chains:
        return 0
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), ROWS_SHAPE))
    for chain in chains:
        graph.fuse(chain, heads)
    graph.write()
    if all(item.domain != CONTRIB for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return len(chains)


class _Graph:
    """A graph that is edited: who makes and who reads each value."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self._proto = proto
        self._nodes: list[onnx.NodeProto] = list(proto.node)
        self._made_by = {name: node for node in self._nodes for name in node.output}
        self._read_by: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._read_by.setdefault(name, []).append(node)
        self._outputs = {output.name for output in proto.output}
        self._tables: dict[str, str] = {}

    def chain(self, softmax: onnx.NodeProto) -> _Chain | None:
        """The attention that a Softmax belongs to, None where it is not of the known form."""
        if softmax.op_type != "Softmax":
            return None
        before = self._through_cast(softmax.input[0])
        after = self._reader_through_cast(softmax.output[0])
        if before is None or after is None or before[-1].op_type != "MatMul" or after[-1].op_type != "MatMul":
            return None
        scores, mix = before[-1], after[-1]
        turn, merge = self._made_by.get(scores.input[1]), self._only_reader(mix.output[0])
        if not _transposes(turn, KEYS_TURNED) or not _transposes(merge, HEADS_LAST):
            return None
        assert turn is not None
        assert merge is not None
        inner = (turn, *before, softmax, *after)
        if any(self._only_reader(node.output[0]) is None for node in inner):
            return None
        weights = (softmax, *after[:-1])[-1].output[0]
        flat = self._only_reader(merge.output[0])
        if mix.input[0] != weights or flat is None or flat.op_type != "Reshape":
            return None
        nodes = (turn, *before, softmax, *after, merge)
        return _Chain(nodes, (scores.input[0], turn.input[0], mix.input[1]), merge.output[0])

    def fuse(self, chain: _Chain, heads: int) -> None:
        """Put one node in the chain's place, with its inputs in rows of patches."""
        merge = chain.nodes[-1]
        in_rows = self._turn_sources(chain)
        new: list[onnx.NodeProto] = []
        rows = []
        for source in chain.inputs:
            value = source
            if not in_rows:
                value = f"{source}.by_patch"
                new.append(helper.make_node("Transpose", [source], [value], name=value, perm=HEADS_LAST))
            rows.append(f"{source}.rows")
            new.append(helper.make_node("Reshape", [value, ROWS_SHAPE], [rows[-1]], name=rows[-1]))
        # The scale is in the query weights already; the operation's default would apply it again.
        attributes: dict[str, Any] = {"domain": CONTRIB, "num_heads": heads, "scale": 1.0}
        new.append(
            helper.make_node("MultiHeadAttention", rows, [chain.output], name=f"{merge.name}.fused", **attributes)
        )
        place = self._place(merge)
        self._nodes[place : place + 1] = new
        for node in chain.nodes[:-1]:
            self._remove(node)

    def write(self) -> None:
        """Put the nodes back into the graph."""
        del self._proto.node[:]
        self._proto.node.extend(self._nodes)

    def _turn_sources(self, chain: _Chain) -> bool:
        """Take out the Transpose before the chain's sources, and have all between run by patch; False: it cannot."""
        region = self._region(chain)
        if region is None:
            return False
        transpose, between = region
        for node in between:
            for index, name in enumerate(node.input):
                if name == transpose.output[0]:
                    node.input[index] = transpose.input[0]
            if node.op_type in ALONG_AN_AXIS:
                axis = next(item for item in node.attribute if item.name == "axis")
                axis.i = {1: 2}.get(axis.i, axis.i)
            if node.op_type == "Mul":
                node.input[1] = self._table_by_patch(node.input[1])
        self._remove(transpose)
        return True

    def _region(self, chain: _Chain) -> tuple[onnx.NodeProto, list[onnx.NodeProto]] | None:
        """The Transpose that all three sources come from, and the nodes between, None where these are others."""
        between: list[onnx.NodeProto] = []
        found: list[onnx.NodeProto] = []
        waiting = [self._made_by.get(name) for name in chain.inputs]
        while waiting:
            node = waiting.pop()
            if node is None or _among(node, (*between, *found)):
                continue
            if _transposes(node, HEADS_LAST):
                found.append(node)
            elif node.op_type in (*ELEMENTWISE, *ALONG_AN_AXIS):
                between.append(node)
                wanted = node.input[:1] if node.op_type in ("Split", "Mul", *ELEMENTWISE[2:]) else node.input
                waiting += [self._made_by.get(name) for name in wanted]
            else:
                return None
        if len(found) != 1 or not all(self._stays_inside(node, between, chain) for node in (found[0], *between)):
            return None
        axes = {item.i for node in between for item in node.attribute if item.name == "axis"}
        made_here = {name for node in (*between, found[0]) for name in node.output}
        tables = {node.input[1] for node in between if node.op_type == "Mul"}
        return None if axes - {1, 3, -1} or tables & made_here else (found[0], between)

    def _stays_inside(self, node: onnx.NodeProto, between: Sequence[onnx.NodeProto], chain: _Chain) -> bool:
        readers = [reader for name in node.output for reader in self._read_by.get(name, ())]
        leaves = any(name in self._outputs for name in node.output)
        return not leaves and all(_among(reader, (*between, *chain.nodes)) for reader in readers)

    def _table_by_patch(self, table: str) -> str:
        """[patches, width] as [patches, 1, width], once for all blocks."""
        if table not in self._tables:
            axis, turned = f"{table}.by_patch.axis", f"{table}.by_patch"
            self._proto.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axis))
            node = helper.make_node("Unsqueeze", [table, axis], [turned], name=turned)
            maker = self._made_by.get(table)
            self._nodes.insert(0 if maker is None else self._place(maker) + 1, node)
            self._tables[table] = turned
        return self._tables[table]

    def _through_cast(self, name: str) -> list[onnx.NodeProto] | None:
        """What makes a value, after a Cast in between: [Cast, maker] or [maker]."""
        node = self._made_by.get(name)
        if node is None:
            return None
        if node.op_type != "Cast":
            return [node]
        maker = self._made_by.get(node.input[0])
        return None if maker is None or self._only_reader(node.input[0]) is None else [node, maker]

    def _reader_through_cast(self, name: str) -> list[onnx.NodeProto] | None:
        node = self._only_reader(name)
        if node is None or node.op_type != "Cast":
            return None if node is None else [node]
        reader = self._only_reader(node.output[0])
        return None if reader is None else [node, reader]

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self._read_by.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _place(self, node: onnx.NodeProto) -> int:
        return next(index for index, item in enumerate(self._nodes) if item is node)

    def _remove(self, node: onnx.NodeProto) -> None:
        del self._nodes[self._place(node)]


def _among(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> bool:
    return any(item is node for item in nodes)


def _transposes(node: onnx.NodeProto | None, order: list[int]) -> bool:
    if node is None or node.op_type != "Transpose":
        return False
    return any(item.name == "perm" and list(item.ints) == order for item in node.attribute)
