"""Parse an ONNX graph of the bundle into a strongly typed TensorRT network: no plugins, I/O as in the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.trt_plans import TensorSpec
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.contract.machine.tensorrt_library import CollectedLog, dimensions, logger_into, trt, using


@dataclass(frozen=True)
class ParsedGraph:
    """A parsed network; the parser owns the weights, so it must live until the plan is built."""

    builder: trt.Builder
    network: trt.INetworkDefinition
    parser: trt.OnnxParser
    log: CollectedLog


def parse_graph(library: str, path: Path, graph: GraphRecord) -> ParsedGraph:
    """Parse a graph and compare its inputs and outputs with the manifest's.

    Raises:
        EngineError: the parser refuses a node (named with op and reason), a node would run in a plugin, or a
            tensor is not what the manifest records.
    """
    with using(library):
        log = CollectedLog()
        logger = logger_into(log)
        builder = trt.Builder(logger)
        # Strongly typed: dtypes are the graph's; no builder flag may change one.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            raise EngineError(f"{library} cannot parse {graph.path}: {_parser_errors(parser)}", field=graph.path)
        _refuse_plugins(network, graph)
        check_tensors(graph.inputs, _inputs(network), graph.path)
        check_tensors(graph.outputs, _outputs(network), graph.path)
        return ParsedGraph(builder, network, parser, log)


def _parser_errors(parser: trt.OnnxParser) -> str:
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
        reasons.append(f"{where}{error.desc()}")
    return "; ".join(reasons) or "no reason given"


def _refuse_plugins(network: trt.INetworkDefinition, graph: GraphRecord) -> None:
    """A plugin is code that the device may lack, and runs in a precision of its own."""
    plugins = {kind for name, kind in trt.LayerType.__members__.items() if name.startswith("PLUGIN")}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in plugins:
            raise EngineError(f"{graph.path}: node {layer.name} would run in a plugin", field=graph.path)


def _inputs(network: trt.INetworkDefinition) -> list[TensorSpec]:
    return [_spec(network.get_input(index)) for index in range(network.num_inputs)]


def _outputs(network: trt.INetworkDefinition) -> list[TensorSpec]:
    return [_spec(network.get_output(index)) for index in range(network.num_outputs)]


def _spec(tensor: trt.ITensor) -> TensorSpec:
    return TensorSpec(tensor.name, np.dtype(trt.nptype(tensor.dtype)).name, dimensions(tensor.shape))


def check_tensors(expected: tuple[TensorSpec, ...], actual: list[TensorSpec], source: str) -> None:
    """Compare the I/O of a network or an engine with the manifest's; symbolic dimensions match any size.

    Raises:
        EngineError: names the tensor that differs.
    """
    if [spec.name for spec in expected] != [spec.name for spec in actual]:
        raise EngineError(
            f"{source}: other tensors than the manifest's",
            field=source,
            expected=", ".join(spec.name for spec in expected),
            got=", ".join(spec.name for spec in actual),
        )
    for recorded, built in zip(expected, actual, strict=True):
        if recorded.dtype != built.dtype or fixed_shape(recorded) != fixed_shape(built):
            raise EngineError(
                f"{source}: tensor {recorded.name} differs", field=recorded.name, expected=recorded, got=built
            )


def fixed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape with -1 for each symbolic dimension, as TensorRT writes it."""
    return tuple(-1 if isinstance(size, str) else size for size in spec.shape)
