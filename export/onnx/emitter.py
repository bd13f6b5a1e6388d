"""A thin layer over onnx.helper: nodes named after the module they come from, weights by reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.export.onnx.weights import StoredTensor

OPSET = 20  # the first with Gelu
IR_VERSION = 10

Value = str  # the name of a tensor in the graph


class GraphEmitter:
    """Collects the nodes of one graph; every method that emits a node returns the name of its output."""

    def __init__(self, weights: dict[str, StoredTensor], weights_location: str) -> None:
        self._weights = weights
        self._location = weights_location
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: Sequence[Value], name: str, **attributes: Any) -> Value:
        """Emit a node with one output, both called `name`."""
        self.nodes(op, inputs, name, [name], **attributes)
        return name

    def nodes(
        self, op: str, inputs: Sequence[Value], name: str, outputs: list[Value], **attributes: Any
    ) -> list[Value]:
        """Emit a node with several outputs."""
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, name: str, array: NDArray[Any]) -> Value:
        """A small constant, stored in the graph itself."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def shape(self, name: str, *sizes: int) -> Value:
        """A constant target shape for Reshape."""
        return self.constant(name, np.array(sizes, dtype=np.int64))

    def weight(self, name: str) -> Value:
        """A tensor of the shared weights file."""
        if name not in self._initializers:
            stored = self._weights[name]
            tensor = TensorProto(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(stored.dtype),
                dims=stored.shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (("location", self._location), ("offset", stored.offset), ("length", stored.length)):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers[name] = tensor
        return name

    def model(self, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> onnx.ModelProto:
        """The finished graph."""
        graph = helper.make_graph(
            self._nodes,
            name,
            [_value_info(spec) for spec in inputs],
            [_value_info(spec) for spec in outputs],
            list(self._initializers.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="qwen3vl-edge", ir_version=IR_VERSION
        )
        return model


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))
