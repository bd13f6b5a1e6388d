"""Every op of the graphs is one that the parser of the oldest supported TensorRT imports, in the types used.

From docs/operators.md of onnx-tensorrt, branch 10.1-GA (JetPack 6 ships 10.3, which took nothing away).
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qwen3vl_edge.contract.bundle.open import open_bundle

FLOATS = {"FLOAT", "FLOAT16"}
INTEGERS = {"INT32", "INT64"}
PARSER_10_1 = {
    "Add": FLOATS | INTEGERS,
    "Cast": FLOATS | INTEGERS | {"UINT8"},
    "Concat": FLOATS | INTEGERS,
    "Div": FLOATS | INTEGERS,
    "Gather": FLOATS | INTEGERS,
    "Gelu": FLOATS,
    "Gemm": FLOATS,
    "Identity": FLOATS | INTEGERS,
    "LayerNormalization": FLOATS,
    "MatMul": FLOATS,
    "Mul": FLOATS | INTEGERS,
    "Neg": FLOATS | INTEGERS,
    "ReduceSum": FLOATS | INTEGERS,
    "Reshape": FLOATS | INTEGERS,
    "Shape": FLOATS | INTEGERS,
    "Softmax": FLOATS,
    "Split": FLOATS | INTEGERS,
    "Squeeze": FLOATS | INTEGERS,
    "Sub": FLOATS | INTEGERS,
    "Transpose": FLOATS | INTEGERS,
    "Unsqueeze": FLOATS | INTEGERS,
}
OPSETS_10_1 = range(9, 21)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ops_and_types(bundle: Path, precision: str) -> None:
    opened = open_bundle(bundle)
    for graph in opened.manifest.precision(precision).graphs:
        model = onnx.load(opened.graph_path(graph), load_external_data=False)
        assert [entry.version in OPSETS_10_1 for entry in model.opset_import] == [True]
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        kinds = {value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}
        kinds |= {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in inferred.initializer}
        for node in model.graph.node:
            assert node.op_type in PARSER_10_1, node.name
            assert kinds[node.input[0]] in PARSER_10_1[node.op_type], (node.name, kinds[node.input[0]])


def test_axes_are_constants(bundle: Path) -> None:
    """The parser takes the axes of these ops from initializers alone."""
    opened = open_bundle(bundle)
    for graph in opened.manifest.precision("fp16").graphs:
        model = onnx.load(opened.graph_path(graph), load_external_data=False)
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("ReduceSum", "Squeeze", "Unsqueeze"):
                assert node.input[1] in constants, node.name
